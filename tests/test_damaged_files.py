"""Damaged files of a run: who reads one ends in an error that names it, or goes on without it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from srl.config import Config, ConfigError, RunConfig, load_run
from srl.driver.run import report
from srl.evaluation.cell import Trajectories, read_counted
from srl.evaluation.compare import align, paired_tests
from srl.evaluation.metrics import summarise
from srl.evaluation.report.comparison import write_comparison
from srl.evaluation.report.files import read_run
from srl.learner.checkpoint import read_state
from srl.observe.records import forget, read_lines
from srl.observe.run_directory import RunDirectory, append_line, finished
from srl.observe.status import format_status, last_record
from srl.pipelines.samples import block_label, missing_blocks, sample_row, write_block
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, to_record

PROBLEM = Problem("p0", "q", "7")
BLOCK = "block-00000.parquet"
STATUS = {"written": 0.0, "interval_s": 5, "host": "h", "pid": 7, "ended": True, "phase": "rl", "step": 0, "moved_s": 0.0}
CARD = {"counts": {"attempts": 1}, "classes": {"D1": 1}, "dropped": {}, "settings": {}, "tables": {}, "examples": []}


def attempt(index: int) -> Trajectory:
    turn = Turn(TurnKind.ATTEMPT, [1], "x", [-0.1], answer="7", outcome=Outcome.CORRECT)
    return Trajectory(f"p{index}/0", f"p{index}", "q", "7", [0], [turn], StopReason.NO_VERDICT)


def made_run(folder: Path) -> Path:
    """With every file that a report, the status, a comparison or a continued run reads."""
    run = RunDirectory(Config(run=RunConfig(directory=str(folder), name="run")))
    run.record("rl-validation", 0, turn1=50.0, final=60.0)
    run.record("phase", 0, name="rl", seconds=1.0)
    run.write_done({"rl": 1.0})
    found = [attempt(0), attempt(1)]
    row = summarise(found, method="rl", benchmark="chains", temperature=1.0, bootstrap=10) | {"evaluation": "rl"}
    run.add_row(row, [to_record(item) for item in found])
    run.close()
    kept = Trajectories(run.path / "evaluations" / "rl", {"weights": 1})
    kept.add(found)
    kept.count(["p0", "p1"])
    write_block([sample_row(found[0], 0, 1.0, "abc")], block_label([PROBLEM], ["abc"]), run.path / "stage1" / "samples" / BLOCK)
    append_line(run.path / "ledger.jsonl", {"phase": "rl", "step": 0})
    (run.path / "resume" / "rl" / "step-00000001").mkdir(parents=True)
    texts = {"status.json": STATUS | {"actors": [], "alarms": []}, "stage1/card.json": CARD}
    texts |= {"resume/rl/step-00000001/state.json": {"step": 1}}
    texts |= {
        "config.yaml": {"run": {"name": "run", "seed": 0}},
        "placement.yaml": {"run": {"log": "text"}},
    }  # the rest has its defaults
    for name, content in texts.items():
        (run.path / name).write_text(json.dumps(content))
    return run.path


FILES = (
    "config.yaml", "placement.yaml", "state.json", "status.json", "metrics.jsonl", "ledger.jsonl", "results.json",
    "trajectories.jsonl", "stage1/card.json", f"stage1/samples/{BLOCK}", "evaluations/rl/identity.json",
    "evaluations/rl/00000.parquet", "evaluations/rl/problems.json", "resume/rl/step-00000001/state.json",
)  # fmt: skip


def compare(path: Path, other: Path) -> None:
    runs = [path, other]
    paired_tests(runs, align([read_run(run).rows for run in runs]))
    write_comparison(runs, path.parent / "page.html")


def readers(path: Path, other: Path) -> dict[str, Callable[[], object]]:
    """The commands, and what a start reads of what is there."""
    evaluation = path / "evaluations" / "rl"
    return {
        "status": lambda: format_status(path, 1.0),
        "report": lambda: report(load_run(path, [f"run.directory={path.parent}"])),
        "compare": lambda: compare(path, other),
        "phases": lambda: finished(path),
        "samples": lambda: missing_blocks(path / "stage1" / "samples", {BLOCK: [PROBLEM]}, ["abc"]),
        "evaluation": lambda: Trajectories(evaluation, {"weights": 1}).read(),
        "records": lambda: [forget(path / name, {"rl": 1}) for name in ("metrics.jsonl", "ledger.jsonl")],
        "checkpoint": lambda: read_state(path / "resume" / "rl" / "step-00000001"),
    }


DAMAGES = {
    "empty": lambda old: b"",
    "half": lambda old: old[: len(old) // 2],
    "list": lambda _: b"[]\n",
    "object": lambda _: b"{}\n",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_run(tmp_path_factory.mktemp("one")), made_run(tmp_path_factory.mktemp("other"))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes nearly all of the time and reads no file."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


def test_the_run_is_whole(runs: tuple[Path, Path]):
    assert {file.relative_to(runs[0]).as_posix() for file in runs[0].rglob("*") if file.is_file()} >= set(FILES)
    for read in readers(*runs).values():
        read()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_whoever_reads_a_damaged_file_names_it_or_goes_on(runs: tuple[Path, Path], name: str, damage: str):
    file = runs[0] / name
    before = {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()}
    for reader, read in readers(*runs).items():
        file.write_bytes(DAMAGES[damage](before[file]))
        try:
            read()
        except ConfigError as error:
            assert str(file) in str(error), f"{reader}: {error}"
        finally:
            for path, content in before.items():  # a report writes config.yaml
                path.write_bytes(content)


@pytest.mark.parametrize("name", ["evaluations/rl/00000.parquet", "evaluations/rl/problems.json", f"stage1/samples/{BLOCK}"])
def test_what_can_be_made_again_may_be_deleted(runs: tuple[Path, Path], name: str):
    file, (path, other) = runs[0] / name, runs
    before = file.read_bytes()
    for damaged in (b"", before[: len(before) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=rf"{file}: .*; delete it and it is made again"):
            readers(path, other)["samples"]()
            read_counted(path / "evaluations" / "rl")
    file.unlink()
    readers(path, other)["samples"]()
    read_counted(path / "evaluations" / "rl")
    file.write_bytes(before)


def test_deleting_one_file_of_an_evaluation_leaves_the_others_as_they_are(tmp_path: Path):
    kept = Trajectories(tmp_path / "rl", {})
    for index in range(2):
        kept.add([attempt(index)])
    (kept.folder / "00000.parquet").unlink()
    kept.add([attempt(0)])
    assert list(kept.read()) == ["p1/0", "p0/0"]


def test_an_evaluation_whose_owner_cannot_be_read_is_not_deleted(tmp_path: Path):
    Trajectories(tmp_path / "rl", {"weights": 1}).add([attempt(0)])
    (tmp_path / "rl" / "identity.json").write_text('{"wei')
    with pytest.raises(ConfigError, match=r"rl/identity.json: damaged"):
        Trajectories(tmp_path / "rl", {"weights": 1})
    (tmp_path / "rl" / "identity.json").write_text('{"weights": 1}')
    assert list(Trajectories(tmp_path / "rl", {"weights": 2}).read()) == []  # of another model


def test_a_bad_line_in_the_middle_is_named_with_its_number(tmp_path: Path):
    file, good = tmp_path / "metrics.jsonl", '{"phase": "rl", "step": 1}\n'
    for bad in ('{"phase": "rl", "st\n', "\0\0\n", "[]\n", "{}\n", "\udcff\n"):
        file.write_bytes((good + bad + good).encode(errors="surrogateescape"))
        with pytest.raises(ConfigError, match=rf"{file}, line 2: no record; delete the line"):
            read_lines(file)
        assert last_record(file) == {"phase": "rl", "step": 1}


def test_lines_that_are_json_and_no_record_are_counted_in_the_report(runs: tuple[Path, Path]):
    for name, count in {"metrics.jsonl": 3, "trajectories.jsonl": 4}.items():
        file = runs[0] / name
        before = file.read_text()
        file.write_text(before + "[]\n{}\n7\n" + '{"method": "rl"' * (count - 3))
        assert read_run(runs[0]).remarks == [f"Lines of {name} that are no records and were left out: {count}."]
        report(load_run(runs[0], [f"run.directory={runs[0].parent}"]))
        file.write_text(before)
