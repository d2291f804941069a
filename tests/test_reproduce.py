"""The paper's tables: their numbers, what is trained and measured for them, and how they are printed. Nothing is trained here."""

import json
from pathlib import Path

import pytest

from srl.config import Config, ConfigError, load_config
from srl.driver import reproduce
from srl.driver.models import Asked
from srl.evaluation.paper import TABLES, VARIANTS
from srl.evaluation.tables import figure_1, figure_2, side_by_side, spread
from srl.main import main
from srl.observe.run_directory import RunDirectory
from srl.protocols.protocol import build_protocol


def configure_in(folder: Path, *settings: str):
    def configure(more: list[str]) -> Config:
        return load_config(None, [f"run.directory={folder}", "name=main", *settings, *more])

    return configure


@pytest.mark.parametrize("number", TABLES)
def test_every_row_of_the_paper_satisfies_its_own_identity(number: int):
    for row in TABLES[number].rows:
        assert len(row.paper) <= len(TABLES[number].columns)
        if len(row.paper) == 5 and number == 3:
            turn1, final, delta, i2c, c2i = row.paper
            assert delta == pytest.approx(final - turn1) == pytest.approx(i2c - c2i, abs=0.01)


def test_every_source_is_a_variant_that_loads_and_asks_a_protocol_that_exists(tmp_path: Path, chat):
    configure = configure_in(tmp_path)
    for table in TABLES.values():
        for source in (row.source for row in table.rows):
            assert source.variant == "" or source.variant in VARIANTS
            config = configure(reproduce.variant_overrides(source.variant, configure))
            build_protocol(reproduce.protocol_of(source, config) or config.protocol.name, config, chat)
            assert config.run.name == ("main" if not source.variant else f"main-{source.variant}")


def test_variants_take_samples_and_the_ift_model_from_the_main_run(tmp_path: Path):
    configure = configure_in(tmp_path, "sft.epochs=1")
    raft = configure(reproduce.variant_overrides("raft", configure))
    assert (raft.stage1.recipe, raft.stage1.samples) == ("raft", str(tmp_path / "main" / "stage1" / "samples"))
    dpo = configure(reproduce.variant_overrides("dpo", configure))
    assert dpo.objective.loss == "dpo" and dpo.rl.start == str(tmp_path / "main" / "checkpoints" / "ift")
    assert raft.sft.epochs == dpo.sft.epochs == 1
    assert configure(reproduce.variant_overrides("single-turn-ppo", configure)).rl.start == "base"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What was trained and asked; every answer is a row whose numbers follow from the run, the model and the seed."""
    found: list[tuple] = []

    def run_phases(config: Config, *commands: str) -> None:
        found.append(("train", config.run.name, *commands))
        for command in commands:
            with RunDirectory(config).phase({"stage1": "assemble"}.get(command, command)):
                pass
        if "rl" in commands:
            RunDirectory(config).record("rl-validation", 5, turn1=60.0, final=66.0 + config.run.seed)

    def evaluate_models(config: Config, asked: list[Asked], benchmarks=(), judge="") -> list[dict]:
        found.append(("ask", config.run.name, tuple((item.model, item.protocol) for item in asked), judge))
        return [made_up(config, item) for item in asked]

    monkeypatch.setattr(reproduce, "run_phases", run_phases)
    monkeypatch.setattr(reproduce, "evaluate_models", evaluate_models)
    return found


def made_up(config: Config, asked: Asked) -> dict:
    seed = config.run.seed if asked.seed is None else asked.seed
    final = 50.0 + seed + 10 * asked.model.endswith("ift") + 20 * ("gold" in asked.protocol)
    point = {"budget": 200.0, "self_rewarding": [70.0, 190.0, 1.6], "independent": [66.0, 198.0, 7.0]}
    scaling = {name: [60.0] for name in ("answers", "maj", "best_of", "weighted", "independent")}
    return {
        "benchmark": "chains", "turn1": 50.0, "final": final, "delta": final - 50.0, "i2c": 9.0, "c2i": 1.0, "cl": 70.0,
        "verdict_correct": 90.0, "verdict_wrong": None,
        "scaling": scaling | {"n": [1], "early_stop": [[60.0, 1.0]], "matched": [point]},
    }  # fmt: skip


def finished(folder: Path, *phases: str) -> None:
    for name in phases:
        with RunDirectory(configure_in(folder)([])).phase(name):
            pass


def one(folder: Path, *tables: int, figures: tuple[int, ...] = ()) -> str:
    return reproduce.reproduce(tables, figures, [configure_in(folder)])


def trained(calls: list[tuple]) -> list[tuple]:
    return [call[1:] for call in calls if call[0] == "train"]


def test_a_table_trains_what_is_missing_once_and_prints_both_numbers(calls, tmp_path: Path):
    text = one(tmp_path, 4)
    assert trained(calls) == [("main", "stage1", "sft"), ("main-ppo", "rl"), ("main-dpo", "rl")]
    assert "| self-rewarding IFT | 90.0 | - | 93.0 | 47.7 |" in text and "here chains" in text
    before = len(calls)
    assert one(tmp_path, 4) == text and trained(calls[before:]) == []


def test_every_run_is_trained_once_for_all_tables_and_all_models_are_asked_together(calls, tmp_path: Path):
    finished(tmp_path, "assemble", "sft")
    one(tmp_path, *TABLES, figures=(1, 2))
    order = [call[0] for call in trained(calls)]
    assert sorted(order) == sorted(f"main-{name}" for name in VARIANTS)
    assert order.index("main-ppo") < order.index("main-distillation")  # the stronger model before it teaches
    ((_, run, asked, judge),) = [call for call in calls if call[0] == "ask"]
    assert run == "main" and judge == str(tmp_path / "main-orm" / "checkpoints" / "orm")
    # Table 3: 10, 4: among them; 5: 6 with three seeds each, 4 of them known; 7: the ORM; 8: 6 mixes, 3 ways; 9: 5; figure 2: 1.
    assert len(asked) == 10 + 18 - 4 + 1 + 18 + 5 + 1
    assert (str(tmp_path / "main-more-wrong" / "checkpoints" / "ift"), "misleading_chain") in asked


def test_the_samples_of_a_table_have_seeds_where_it_shows_one_run(calls, tmp_path: Path):
    text = one(tmp_path, 5)
    assert "| self-rewarding IFT, gold verdicts | 81.0 [80.0, 82.0] |" in text  # 50 + 10 + 20 + seeds 0, 1, 2
    assert "| intrinsic self-correction | 51.0 [50.0, 52.0] |" in text and "| prompt with external ORM | 51.0 [" in text


def test_several_seeds_are_several_main_runs_and_become_mean_and_range(calls, tmp_path: Path, capsys):
    line = ["reproduce", "--table", "5", "--figure", "1", "--seeds", "0,2", f"run.directory={tmp_path}", "name=main"]
    assert main(line) == 0
    text = (tmp_path / "main-reproduce.md").read_text()
    assert "| self-rewarding IFT, gold verdicts | 81.0 [80.0, 82.0] |" in text and text.strip() in capsys.readouterr().out
    assert "| 5 | 60.0 [60.0, 60.0] | 67.0 [66.0, 68.0] | +7.0 [+6.0, +8.0] |" in text
    assert {call[0] for call in trained(calls)} >= {"main-0", "main-2", "main-0-raft", "main-2-ppo"}


def test_what_is_not_trained_stays_empty_where_nothing_is_to_be_trained(calls, tmp_path: Path):
    finished(tmp_path, "assemble", "sft")
    text = reproduce.reproduce([4, 5], [1, 2], [configure_in(tmp_path)], train=False)
    assert trained(calls) == [] and "| IFT + PPO | - | - | 98.6 | 47.6 |" in text and "| prompt with external ORM | - |" in text
    assert "| self-rewarding IFT | 90.0 | - | 93.0 | 47.7 |" in text and "- not measured: RAFT helps" in text
    assert "Figure 1: not trained" in text and "| 1 | 60.0 |" in text


def test_misled_answers_give_the_share_that_gives_in(calls, tmp_path: Path):
    text = one(tmp_path, 8)
    line = next(line for line in text.splitlines() if line.startswith("| balanced |"))
    assert line.split(" | ")[6] == "30.0"  # p(c->i) = 100 - CL of the misled rows
    assert ("main-balanced", "stage1", "sft") in trained(calls)


def test_what_differs_from_the_paper_is_said(calls, tmp_path: Path):
    text = one(tmp_path, 5)
    assert "- as there: gold verdicts would do better still: final 81.0 against 61.0, in 3 of 3 seeds" in text
    assert "- NOT SO HERE: self-rewarding IFT ends above RAFT+: final 61.0 against 61.0, in 0 of 3 seeds" in text
    assert "- not measured: more correct-first data: verdict W falls" in one(tmp_path, 8)


def test_a_run_that_cannot_be_shown_is_refused_with_what_to_do(calls, tmp_path: Path, capsys):
    assert main(["reproduce", "--figure", "2", f"run.directory={tmp_path}", "fresh=true"]) == 2
    assert "would delete" in capsys.readouterr().err
    assert main(["reproduce", f"run.directory={tmp_path}"]) == 2
    assert "--table N, --figure N or --all" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no validation during RL"):
        reproduce.validations(tmp_path)


def test_every_claim_compares_rows_and_columns_of_its_table():
    for table in TABLES.values():
        labels = {row.label for row in table.rows}
        assert len(labels) == len(table.rows)
        for claim in table.claims:
            assert claim.higher and claim.lower and {*claim.higher, *claim.lower} <= labels
            assert {claim.column, claim.lower_column or claim.column} <= {*table.columns}


def test_numbers_are_averaged_over_those_that_are_there():
    assert spread([60.0, 62.0, None], signed=False) == "61.0 [60.0, 62.0]"
    assert spread([1.0], signed=True) == "+1.0" and spread([None], signed=False) == "-"


def test_a_table_without_numbers_of_the_paper_has_no_columns_for_them():
    text = side_by_side(TABLES[9], [[made_up(Config(), Asked("ift"))] for _ in TABLES[9].rows], "chains")
    assert "paper:" not in text and text.count("\n| ") == 1 + len(TABLES[9].rows)


def test_figure_1_shows_the_steps_that_all_runs_have(tmp_path: Path):
    lines = [
        {"phase": "rl-validation", "step": step, "turn1": 60.0, "final": final}
        for step, final in ((0, 1.0), (5, 66.5), (0, 62.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    points = reproduce.validations(tmp_path)
    text = figure_1([points, {5: {"turn1": 62.0, "final": 66.5}, 0: {"turn1": 60.0, "final": 62.0}, 10: {}}])
    # Of two lines of a step the last counts.
    assert "| 0 | 60.0 [60.0, 60.0] | 62.0 [62.0, 62.0] | +2.0 [+2.0, +2.0] |" in text
    assert "| 5 | 61.0 [60.0, 62.0] | 66.5 [66.5, 66.5] | +5.5 [+4.5, +6.5] |" in text and "| 10 |" not in text


def test_figure_2_puts_answers_used_beside_accuracy():
    point = {"budget": 200.0, "self_rewarding": [70.0, 190.0, 1.6], "independent": [66.0, 198.0, 7.0]}
    scaling = {
        "n": [1, 2], "answers": [1.4, 2.8], "maj": [60.0, 64.0], "best_of": [60.0, 65.0], "weighted": [60.0, 66.0],
        "early_stop": [[60.0, 1.0], [63.0, 1.2]], "independent": [55.0, 58.0], "matched": [point],
    }  # fmt: skip
    text = figure_2([{"scaling": scaling}, {"scaling": scaling | {"maj": [60.0, 66.0]}}])
    assert "| 2 | 2.8 | 65.0 | 65.0 | 66.0 | 63.0 (1.2) | 58.0 |" in text
    assert (
        "At 200 tokens per problem: 70.0 with 1.6 whole trajectories, 66.0 with 7.0 independent attempts." in text
        and "42.8 with 26.4" in text
    )
