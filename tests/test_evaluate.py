"""Evaluation without an engine: what is kept, what continues, and what unusable output becomes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from srl.config import Config, ConfigError, load_config
from srl.driver import models
from srl.driver.check import check_start
from srl.driver.evaluate import evaluate, measure
from srl.driver.problems import load_task, shared
from srl.evaluation.cell import Cell
from srl.evaluation.compare import align, paired_tests
from srl.observe.run_directory import RunDirectory
from srl.protocols.action import Sampled
from srl.protocols.receive import append_chain, chain_end
from srl.tasks.problems import Problem, place_of, to_problem
from srl.trajectory import Outcome, StopReason, Trajectory, TurnKind

PROBLEMS = [to_problem(f"What is {number}?", str(number)) for number in range(20)]
SOLVED = r"So \boxed{%s}" + "\n[VERIFY] correct"


class Letters:
    """A tokenizer whose tokens are characters; the end token is 0."""

    stop_ids = (0,)

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token) for token in ids if token)

    def reach(self, ids: list[int], characters: int, begun: tuple[int, int]) -> tuple[int, int]:
        return (min(characters, len(ids)),) * 2


class Answering:
    """A session whose model writes `text(trajectory)`; a grader that compares strings. `limit` trajectories, then it dies."""

    def __init__(self, config: Config, text: Callable[[Trajectory], str], limit: int | None = None):
        self.config, self.text, self.limit = config, text, limit
        self.run, self.base = RunDirectory(config), "base"
        self.asked: list[str] = []

    def pool(self) -> "Answering":
        return self

    def use_weights(self, folder: str) -> None:
        pass

    def new_trajectory(self, name: str, problem: Problem) -> Trajectory:
        return Trajectory(name, problem.prompt_id, problem.question, problem.gold, list(map(ord, problem.question)))

    def stream(self, protocol: str, groups: Iterable[list[Trajectory]], temperature: float) -> Iterator[list[Trajectory]]:
        """The last comes first: results are never in the order asked."""
        for (trajectory,) in reversed(list(groups)):
            if self.limit is not None and len(self.asked) >= self.limit:
                raise KeyboardInterrupt
            self.asked.append(trajectory.id)
            text = self.text(trajectory)
            ids = [*map(ord, text), 0] if len(text) < 400 else list(map(ord, text[:400]))
            sampled = Sampled(TurnKind.ATTEMPT, ids, [-0.5] * len(ids), 0, finished_by_length=len(text) >= 400)
            append_chain(trajectory, sampled, Letters(), "verify")
            trajectory.stop_reason = chain_end(trajectory).reason
            yield [trajectory]

    def begin_grading(self, trajectories: list[Trajectory]) -> None: ...

    def grade(self, trajectories: list[Trajectory]) -> None:
        for turn, gold in ((turn, item.gold) for item in trajectories for turn in item.answers()):
            turn.outcome = Outcome.NO_ANSWER if turn.answer is None else Outcome.INCORRECT
            turn.outcome = Outcome.CORRECT if turn.answer == gold else turn.outcome


def often_right(trajectory: Trajectory) -> str:
    """Depends on the trajectory's id and seed alone, as sampling does."""
    dice = hashlib.sha256(f"{trajectory.id} {trajectory.seed}".encode()).digest()
    first = trajectory.gold if dice[0] < 150 else "99"
    said = "correct" if (dice[1] < 200) is (first == trajectory.gold) else "wrong"
    again = rf" Again \boxed{{{trajectory.gold}}}" if said == "wrong" else ""
    return rf"So \boxed{{{first}}}" + f"\n[VERIFY] {said}" + again


def config_in(folder: Path, *more: str) -> Config:
    return load_config(None, [f"run.directory={folder}", "evaluate.bootstrap=100", "evaluate.block=4", *more])


def cell(**changes) -> Cell:
    fields = {
        "method": "m", "model": "base", "protocol": "long_chain", "benchmark": "b", "temperature": 1.0, "samples": 1, "seed": 0
    }  # fmt: skip
    return Cell(**fields | changes)


def quietly(count: int) -> None:
    pass


def row_of(folder: Path, text=often_right, problems=PROBLEMS, asked: Cell | None = None, *more: str) -> dict:
    return measure(Answering(config_in(folder, *more), text), asked or cell(), problems, quietly)


def test_an_interrupted_evaluation_continues_and_gives_the_undisturbed_row(tmp_path: Path):
    undisturbed = row_of(tmp_path / "one")
    stopped = Answering(config_in(tmp_path / "two"), often_right, limit=10)
    with pytest.raises(KeyboardInterrupt):
        measure(stopped, cell(), PROBLEMS, quietly)
    assert stopped.run.rows() == []
    continued = Answering(config_in(tmp_path / "two"), often_right)
    heard: list[int] = []
    assert measure(continued, cell(), PROBLEMS, heard.append) == undisturbed
    assert len(continued.asked) == 12 and not set(continued.asked) & set(stopped.asked[:8])  # blocks of 4: 8 were kept
    assert sum(heard) == len(PROBLEMS)


def test_a_finished_evaluation_asks_nothing_again(tmp_path: Path):
    first = row_of(tmp_path)
    again = Answering(config_in(tmp_path), often_right)
    assert measure(again, cell(), PROBLEMS, quietly) == first and again.asked == []
    assert len(again.run.rows()) == 1


def test_the_row_depends_neither_on_the_number_of_workers_nor_on_the_order_of_problems(tmp_path: Path):
    rows = [
        row_of(tmp_path / "one"),
        row_of(tmp_path / "three", often_right, PROBLEMS, None, "rollout.workers=3"),
        row_of(tmp_path / "order", often_right, PROBLEMS[::-1]),
        row_of(tmp_path / "blocks", often_right, PROBLEMS, None, "evaluate.block=7"),
    ]
    assert all(row == rows[0] for row in rows) and 0 < rows[0]["turn1"] < 100 and rows[0]["i2c"] > 0


def test_more_samples_or_problems_add_to_what_is_there(tmp_path: Path):
    config = config_in(tmp_path)
    measure(Answering(config, often_right), cell(samples=2), PROBLEMS[:10], quietly)
    more = Answering(config, often_right)
    measure(more, cell(samples=2), PROBLEMS, quietly)
    assert len(more.asked) == 20
    row = more.run.rows()[0]
    assert (row["n"], row["trajectories"], row["samples"]) == (20, 40, 2)
    assert row["scaling"]["n"] == [1, 2] and row["scaling"]["maj"][0] == row["final"]


def test_runs_are_compared_on_the_problems_of_their_rows(tmp_path: Path):
    """Of 20 problems that were asked, the row is about ten: the others stay in its folder and in no test."""
    for name in ("one", "two"):
        rows = [row_of(tmp_path / name, problems=problems) for problems in (PROBLEMS, PROBLEMS[:10])]
    directories = [tmp_path / name / "tiny" for name in ("one", "two")]
    (test,) = paired_tests(directories, align([[rows[1]], [rows[1]]]))
    assert test["problems"] == rows[1]["n"] == 10


def test_a_row_that_is_measured_again_keeps_its_place(tmp_path: Path):
    for method, problems in (("base", PROBLEMS[:5]), ("rl", PROBLEMS), ("base", PROBLEMS)):
        row_of(tmp_path, problems=problems, asked=cell(method=method))
    assert [(row["method"], row["n"]) for row in RunDirectory(config_in(tmp_path)).rows()] == [("base", 20), ("rl", 20)]


def test_another_seed_is_another_cell_with_other_answers(tmp_path: Path):
    assert row_of(tmp_path, asked=cell(seed=1))["turn1"] != row_of(tmp_path, asked=cell(seed=2))["turn1"]


def test_changed_weights_or_wording_are_measured_anew(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    asked = cell(model=str(folder))
    row_of(tmp_path / "runs", asked=asked)
    (folder / "model.safetensors").write_bytes(b"22")
    again = Answering(config_in(tmp_path / "runs"), often_right)
    measure(again, asked, PROBLEMS, quietly)
    assert len(again.asked) == len(PROBLEMS)


@pytest.mark.parametrize("changed", ["gold", "chat template"])
def test_a_mended_gold_answer_or_chat_template_asks_what_it_concerns_again(changed: str, tmp_path: Path, monkeypatch):
    row_of(tmp_path, lambda trajectory: SOLVED % trajectory.question.split()[-1][:-1])
    problems = [*PROBLEMS[:19], Problem(PROBLEMS[19].prompt_id, PROBLEMS[19].question, "20")]
    again = Answering(config_in(tmp_path), lambda trajectory: SOLVED % "20")
    if changed == "gold":
        assert (measure(again, cell(), problems, quietly)["final"], len(again.asked)) == (100.0, 1)
    else:
        put = again.new_trajectory
        monkeypatch.setattr(again, "new_trajectory", lambda name, problem: replace(put(name, problem), prompt_token_ids=[1]))
        assert (measure(again, cell(), PROBLEMS, quietly)["final"], len(again.asked)) == (0.0, 20)
    assert models.complete(again, cell(), problems if changed == "gold" else PROBLEMS)


UNUSABLE = {
    "empty": "",
    "blank": " \n \n",
    "no verdict": r"\boxed{%s}",
    "verdict before the answer": "[VERIFY] correct\n\\boxed{%s}",
    "only a verdict": "[VERIFY] wrong",
    "another language": "答案是四十二。\u200b🤖",
    "endless": "again " * 100,
    "verdicts without end": "[VERIFY] wrong " * 20,
    "wrong, then nothing": "\\boxed{%s}\n[VERIFY] wrong",
    "box that never closes": "\\boxed{%s [VERIFY] correct",
    "markers inside boxes": "\\boxed{\\text{[VERIFY] wrong.}} \\boxed{%s}",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_output_is_measured(name: str, tmp_path: Path):
    text = UNUSABLE[name]
    row = row_of(tmp_path, lambda trajectory: text.replace("%s", trajectory.gold))
    assert row["trajectories"] == row["n"] == len(PROBLEMS)
    assert sum(row["stops"].values()) == sum(row["transitions"].values()) == len(PROBLEMS)
    assert row["delta"] == pytest.approx(row["i2c"] - row["c2i"])
    if "%s" not in text:
        assert (row["turn1"], row["final"]) == (0, 0)
    if name in ("empty", "blank", "no verdict", "another language", "endless", "wrong, then nothing", "only a verdict"):
        assert row["format_failures"] == 100


def test_a_mixture_of_usable_and_unusable_output_loses_no_problem(tmp_path: Path):
    texts = [*UNUSABLE.values(), SOLVED]
    row = row_of(tmp_path, lambda item: texts[int(item.gold) % len(texts)].replace("%s", item.gold), asked=cell(samples=3))
    assert row["trajectories"] == 60 and row["scaling"]["n"] == [1, 2, 3]


def test_what_workers_failed_on_counts_as_wrong_and_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    class Failing(Answering):
        def stream(self, *arguments) -> Iterator[list[Trajectory]]:
            for place, group in enumerate(super().stream(*arguments)):
                if place % 4 == 0:
                    group[0].turns, group[0].stop_reason = [], StopReason.FAILED
                yield group

    config = config_in(tmp_path)
    row = measure(Failing(config, lambda item: SOLVED % item.gold), cell(), PROBLEMS, quietly)
    assert (row["stops"]["failed"], row["final"]) == (5, 75.0)  # every fourth of 20
    assert "WARNING m on b: workers died or hung with 5 of 20 trajectories, which count as wrong" in capsys.readouterr().out
    again = Answering(config, lambda item: SOLVED % item.gold)
    assert measure(again, cell(), PROBLEMS, quietly)["final"] == 100.0 and len(again.asked) == 5
    assert "WARNING" not in capsys.readouterr().out


def test_methods_of_a_run_use_its_checkpoints_and_protocols(tmp_path: Path):
    session = Answering(config_in(tmp_path), often_right)
    rows = [evaluate(session, method, "chains", PROBLEMS[:4], quietly) for method in ("base", "intrinsic", "ift")]
    assert [row["protocol"] for row in rows] == ["prompted", "intrinsic", "long_chain"]
    assert rows[0]["model"] == "base" and rows[2]["model"].endswith("checkpoints/ift")


def questions(config: Config, names: dict[str, str]) -> models.Questions:
    return models.Questions(config, dict.fromkeys(names, "folder"), {}, names, "orm", {}, {"b": ""})


def test_names_of_methods_say_what_differs_from_the_rows_of_the_run(tmp_path: Path):
    config = config_in(tmp_path)

    def named(model: str, protocol: str, **changes) -> str:
        return models.cell_of(models.Asked(model, protocol, **changes), "b", questions(config, {model: model})).method

    assert named("base", "prompted") == "base" and named("base", "intrinsic") == "intrinsic"
    assert named("rl", "long_chain") == "rl" and named("rl", "intrinsic") == "rl, intrinsic"
    assert named("mine", "long_chain", temperature=0.0) == "mine, greedy"
    assert named("mine", "long_chain", samples=4) == "mine, 4 samples"
    assert named("mine", "judged_chain") == "mine, judged_chain, judge orm"
    with pytest.raises(ConfigError, match="4 samples at temperature 0 are 4 times the same"):
        named("mine", "long_chain", temperature=0.0, samples=4)
    assert named("base", "prompted", temperature=0.7, seed=3) == "base, T 0.7, seed 3"


def test_models_of_one_folder_name_have_rows_of_their_own():
    """In one call and in calls one after the other; the run's own models keep their names."""
    run = Path("/runs/this")
    sources = {"rl": "/runs/this/checkpoints/rl", "old": "/runs/old/checkpoints/rl", "a": "/a/checkpoint-9"}
    sources |= {"b": "/b/checkpoint-9", "hub": "owner/name", "reserved": "/models/base"}
    names = models.model_names(sources, run, [])
    assert names == {"rl": "rl", "old": "old rl", "a": "checkpoint-9", "b": "b/checkpoint-9", "hub": "name",
                     "reserved": "models/base"}  # fmt: skip
    rows = [{"method": f"{names[name]}, greedy", "model": source} for name, source in sources.items()]
    assert models.model_names(sources, run, rows) == names
    assert models.model_names({"b": "/b/checkpoint-9"}, run, rows[2:3]) == {"b": "b/checkpoint-9"}
    assert models.model_names({"mine": "/x/mine"}, run, rows) == {"mine": "mine"}


def test_judges_of_one_folder_name_have_rows_of_their_own(tmp_path: Path):
    rows = [{"method": "rl, judged_chain, judge orm, greedy", "judge": "/runs/this/checkpoints/orm"}]
    for judge, name in (
        ("/runs/this/checkpoints/orm", "orm"),
        ("/runs/old/checkpoints/orm", "checkpoints/orm"),
        ("served", "served"),
    ):
        assert models.judge_name(config_in(tmp_path, f"protocol.judge={judge}"), rows) == name


def test_a_judge_that_nobody_asks_is_refused(tmp_path: Path):
    (tmp_path / "tiny" / "checkpoints" / "orm").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--judge orm: prompted asks no judge; --protocol judged_chain does"):
        models.evaluate_models(config_in(tmp_path), [models.Asked("base")], judge="orm")


def problems_file(file: Path, *questions: str) -> str:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("".join(json.dumps({"problem": question, "answer": "7"}) + "\n" for question in questions))
    return str(file)


def test_benchmarks_of_one_file_name_have_rows_of_their_own(tmp_path: Path):
    own, a, b = (problems_file(tmp_path / name / "test.jsonl", f"{name}?") for name in ("own", "a", "b"))
    config = config_in(tmp_path, "task.name=file", f"task.train={own}", f"task.test.test={own}")
    problems, places = models.benchmarks_of([own, a, b, "test"], config, [])
    assert {title: [problem.question for problem in tests] for title, tests in problems.items()} == {
        "test": ["own?"], "a/test": ["a?"], "b/test": ["b?"]
    }  # fmt: skip
    assert places == {"test": own, "a/test": a, "b/test": b}
    chains = config_in(tmp_path)
    assert list(models.benchmarks_of([a], chains, [])[0]) == ["test"]
    assert list(models.benchmarks_of([a], chains, [{"benchmark": "test", "source": b}])[0]) == ["a/test"]
    assert list(models.benchmarks_of([a], chains, [{"benchmark": "test", "source": a}])[0]) == ["test"]


def test_a_large_benchmark_is_asked_all_over_by_its_name_and_by_its_file(tmp_path: Path):
    own = problems_file(tmp_path / "own.jsonl", *(f"{number}?" for number in range(100)))
    config = config_in(tmp_path, "task.name=file", f"task.train={own}", f"task.test.own={own}", "evaluate.problems=30")
    by_name = models.benchmarks_of(["own"], config, [])[0]["own"]
    numbers = sorted(int(problem.question[:-1]) for problem in by_name)
    assert len(numbers) == 30 and numbers[0] < 15 and numbers[-1] > 85
    assert by_name == models.benchmarks_of([own], config_in(tmp_path, "evaluate.problems=30"), [])[0]["own"]


def test_evaluations_alone_read_no_training_data(tmp_path: Path):
    """Golds are parsed when they are read: for NuminaMath-CoT that takes longer than many an evaluation."""
    own = problems_file(tmp_path / "own.jsonl", "Start at 47: (1) +38 (2) -19 = ?")
    config = config_in(tmp_path, "task.name=file", f"task.train={tmp_path}/none.jsonl", f"task.test.own={own}")
    assert [len(tests) for tests in check_start(config, ["evaluate-base", "evaluate-rl"])["test"].values()] == [1]
    with pytest.raises(ConfigError, match=r"none\.jsonl: no such file"):
        check_start(config, ["evaluate-base", "sample"])


def test_test_problems_that_are_trained_on_are_counted(tmp_path: Path):
    """Of nine training problems the first is for validation; `mixed` has it, one of the others and two of its own."""
    train = problems_file(tmp_path / "train.jsonl", *(f"{number}?" for number in range(9)))
    mixed = problems_file(tmp_path / "mixed.jsonl", "0?", "5?", "x?", "y?")
    clean = problems_file(tmp_path / "clean.jsonl", "x?")
    files = [f"task.train={train}", f"task.test.mixed={mixed}", f"task.test.clean={clean}"]
    config = config_in(tmp_path, "task.name=file", "evaluate.validation_problems=1", *files)
    assert shared(load_task(config)) == ["2 of 4 problems of mixed are also trained on or validated with"]
    assert shared(load_task(config_in(tmp_path, "stage1.prompts=50", "rl.steps=1", "evaluate.problems=50"))) == []


def test_sources_of_benchmarks_have_names_that_tell_them_apart(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = {
        "math500": (["math500"], "math500"),
        "math:train": (["math:train"], "math:train"),
        "owner/data-v1.5": (["owner", "data-v1.5"], "owner/data-v1.5"),
    }
    assert {source: place_of(source) for source in expected} == expected
    parts, place = place_of("minerva=data/minerva_math.jsonl")
    assert (parts[-2:], place) == (["data", "minerva"], f"minerva={tmp_path}/data/minerva_math.jsonl")
    parts, place = place_of("data/own.v2.jsonl")
    assert (parts[-2:], place) == (["data", "own.v2"], f"{tmp_path}/data/own.v2.jsonl")


def test_only_the_embedded_task_has_its_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # else a machine without the hub tries for half a minute
    own = problems_file(tmp_path / "own.jsonl", "own?")
    config = config_in(tmp_path, "task.name=file", f"task.train={own}", f"task.test.own={own}")
    with pytest.raises(ConfigError, match="chains: neither a file nor a hub dataset"):
        models.benchmarks_of(["chains"], config, [])
    assert list(models.benchmarks_of([], config, [])[0]) == ["own"]
    assert list(models.benchmarks_of(["chains"], config_in(tmp_path), [])[0]) == ["chains"]


def test_cells_that_differ_in_anything_have_folders_of_their_own():
    changes = [{}, {"seed": 1}, {"samples": 2}, {"temperature": 0.0}, {"benchmark": "b!"}, {"protocol": "intrinsic"}]
    slugs = [cell(**change).slug() for change in changes]
    assert len(set(slugs)) == len(slugs) and all(slug.replace("-", "").replace(".", "").isalnum() for slug in slugs)


@pytest.mark.parametrize(("model", "says"), [("ift", "no such checkpoint yet"), ("./nowhere", "neither a checkpoint")])
def test_a_model_that_is_not_there_is_refused(model: str, says: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=says):
        models.evaluate_models(config_in(tmp_path), [models.Asked(model)])


def test_stop_reasons_of_unusable_output_have_names(tmp_path: Path):
    row = row_of(tmp_path, lambda trajectory: UNUSABLE["endless"])
    assert row["stops"][StopReason.LENGTH] == len(PROBLEMS)
