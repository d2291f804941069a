"""The paper's tables: their numbers, what is trained and measured for them, and how they are printed. Nothing is trained here."""

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

    def run_phases(config: Config, command: str) -> None:
        found.append(("train", config.run.name, command))
        with RunDirectory(config).phase(command):
            pass

    def evaluate_models(config: Config, asked: list[Asked], benchmarks=(), limit=None) -> list[dict]:
        found.append(("ask", config.run.name, tuple((item.model, item.protocol) for item in asked)))
        by_model = [item for model in dict.fromkeys(item.model for item in asked) for item in asked if item.model == model]
        return [made_up(config.run.name, item) for item in by_model]

    monkeypatch.setattr(reproduce, "run_phases", run_phases)
    monkeypatch.setattr(reproduce, "evaluate_models", evaluate_models)
    return found


def made_up(run: str, asked: Asked) -> dict:
    final = 50.0 + asked.seed + 10 * (asked.model == "ift") + 20 * ("gold" in asked.protocol)
    return {
        "benchmark": "chains", "turn1": 50.0, "final": final, "delta": final - 50.0, "i2c": 9.0, "c2i": 1.0, "cl": 70.0,
        "verdict_correct": 90.0, "verdict_wrong": None, "run": run,
    }  # fmt: skip


def finished(folder: Path, *phases: str) -> None:
    for name in phases:
        with RunDirectory(configure_in(folder)([])).phase(name):
            pass


def test_a_table_trains_what_is_missing_once_and_prints_both_numbers(calls, tmp_path: Path):
    finished(tmp_path, "sft", "rl")
    text = reproduce.table(TABLES[4], configure_in(tmp_path))
    assert [call for call in calls if call[0] == "train"] == [("train", "main-ppo", "rl"), ("train", "main-dpo", "rl")]
    assert "| self-rewarding IFT | 90.0 | - | 93.0 | 47.7 |" in text and "here chains" in text
    before = len(calls)
    reproduce.table(TABLES[4], configure_in(tmp_path))
    assert not [call for call in calls[before:] if call[0] == "train"]


def test_a_table_over_seeds_gives_mean_and_deviation(calls, tmp_path: Path):
    finished(tmp_path, "sft")
    text = reproduce.table(TABLES[5], configure_in(tmp_path))
    assert "| self-rewarding IFT, gold verdicts | 81.0 ± 1.0 |" in text  # 50 + 10 + 20 + seeds 0, 1, 2
    assert "| intrinsic self-correction | 51.0 ± 1.0 |" in text and "Left out: the external reward model" in text
    assert ("ask", "main", tuple([("base", "intrinsic")] * 3 + [("ift", "")] * 3 + [("ift", "gold_chain")] * 3)) in calls


def test_misled_answers_give_the_share_that_gives_in(calls, tmp_path: Path):
    finished(tmp_path, "sft")
    text = reproduce.table(TABLES[8], configure_in(tmp_path))
    line = next(line for line in text.splitlines() if line.startswith("| balanced |"))
    assert line.split(" | ")[6] == "30.0"  # p(c->i) = 100 - CL of the misled rows
    assert sum(call == ("train", "main-balanced", "stage1") for call in calls) == 1


def test_a_run_that_is_not_there_is_refused_with_what_to_do(calls, tmp_path: Path, capsys):
    assert main(["reproduce", "--table", "4", f"run.directory={tmp_path}"]) == 2
    assert "python -m srl.main run" in capsys.readouterr().err
    assert main(["reproduce", "--figure", "2", f"run.directory={tmp_path}", "fresh=true"]) == 2
    assert "would delete" in capsys.readouterr().err
    assert main(["reproduce", f"run.directory={tmp_path}"]) == 2
    assert "--table N, --figure N or --all" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no validation during RL"):
        reproduce.figure(1, configure_in(tmp_path))


def test_numbers_are_averaged_over_those_that_are_there():
    assert spread([60.0, 62.0, None], signed=False) == "61.0 ± 1.4"
    assert spread([1.0], signed=True) == "+1.0" and spread([None], signed=False) == "-"


def test_a_table_without_numbers_of_the_paper_has_no_columns_for_them():
    text = side_by_side(TABLES[9], [[made_up("r", Asked("ift", seed=0))] for _ in TABLES[9].rows], "chains")
    assert "paper:" not in text and text.count("\n| ") == 1 + len(TABLES[9].rows)


def test_figure_1_takes_the_last_of_two_lines_of_a_step():
    points = ((0, 1.0), (5, 66.5), (0, 62.0))
    lines = [{"phase": "rl-validation", "step": step, "turn1": 60.0, "final": final} for step, final in points]
    text = figure_1(lines)
    assert "| 0 | 60.0 | 62.0 | +2.0 |" in text and "| 5 | 60.0 | 66.5 | +6.5 |" in text and "| 1.0 |" not in text


def test_figure_2_puts_answers_used_beside_accuracy():
    point = {"budget": 200.0, "self_rewarding": [70.0, 190.0, 1.6], "independent": [66.0, 198.0, 7.0]}
    scaling = {
        "n": [1, 2], "answers": [1.4, 2.8], "maj": [60.0, 64.0], "best_of": [60.0, 65.0], "weighted": [60.0, 66.0],
        "early_stop": [[60.0, 1.0], [63.0, 1.2]], "independent": [55.0, 58.0], "matched": [point],
    }  # fmt: skip
    text = figure_2([{"method": "ift, 2 samples", "scaling": scaling}])
    assert "| ift, 2 samples | 2 | 2.8 | 64.0 | 65.0 | 66.0 | 63.0 (1.2) | 58.0 |" in text
    assert "at 200 tokens per problem: 70.0 with whole trajectories, 66.0" in text and "42.8 with 26.4" in text
