"""Runs side by side."""

import json
from pathlib import Path

import pytest

from srl.evaluation.cell import Trajectories
from srl.evaluation.compare import align, compare_within, comparison_table, paired_tests, sentences, spread
from srl.evaluation.metrics import summarise
from srl.main import main
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind

METHODS = ("base", "rl")


def attempts(right: int) -> list[Trajectory]:
    outcomes = [Outcome.CORRECT if index < right else Outcome.INCORRECT for index in range(40)]
    turns = [Turn(TurnKind.ATTEMPT, [1], "x", [-0.1], answer="7", outcome=outcome) for outcome in outcomes]
    return [Trajectory(f"t{i}", f"p{i}", "q", "7", [0], [turn], StopReason.NO_VERDICT) for i, turn in enumerate(turns)]


def made_up_run(folder: Path, rights: dict[str, int], seed: int = 0) -> Path:
    rows = []
    for method, right in rights.items():
        found = attempts(right)
        Trajectories(folder / "evaluations" / method, {}).add(found)
        rows.append(summarise(found, method=method, benchmark="chains", temperature=1.0, bootstrap=100) | {"evaluation": method})
    (folder / "results.json").write_text(json.dumps({"rows": rows}))
    lines = [{"phase": "rl-validation", "step": step, "final": 60.0 + step, "turn1": 50.0} for step in range(3)]
    lines += [{"phase": "phase", "step": 0, "name": "rl", "seconds": 60.0 + seed}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"run: {{seed: {seed}}}\nrl: {{steps: 3}}\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        made_up_run(tmp_path / name, {"base": 20, "rl": right}, seed) for seed, (name, right) in enumerate([("a", 24), ("b", 32)])
    ]


@pytest.mark.parametrize("file", ["results.json", "config.yaml"])
def test_a_broken_file_is_named(runs: list[Path], file: str, capsys):
    (runs[1] / file).write_text("{")
    assert main(["compare", *map(str, runs), "--output", str(runs[0].parent / "page.html")]) == 2
    assert f"b/{file}: not " in capsys.readouterr().err


def test_the_page_may_stand_in_a_folder_that_is_not_there_yet(runs: list[Path], capsys):
    page = runs[0].parent / "deep" / "page.html"
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 0 and page.exists()
    assert main(["compare", *map(str, runs), "--output", str(page.parent)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_compared(runs: list[Path], capsys):
    assert main(["compare", *map(str, runs), "--output", "/proc/page.html"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == "srl: --output: /proc cannot be written to: No such file or directory\n"


def rows_of(runs: list[Path]) -> list[list[dict]]:
    return [json.loads((run / "results.json").read_text())["rows"] for run in runs]


def test_rows_are_aligned_by_method_and_benchmark_not_by_place():
    first = [{"method": "base", "benchmark": "b"}, {"method": "rl", "benchmark": "b"}]
    found = align([first, first[::-1][:1]])
    assert found == {("base", "b"): [first[0], None], ("rl", "b"): [first[1], first[1]]}


def test_mean_and_deviation_worked_by_hand():
    rows = [{"final": 60.0}, {"final": 66.0}, None, {"final": 63.0}, {"final": None}]
    assert spread(rows, "final") == (63.0, 3.0)
    assert spread([None], "final") is None and spread(rows[:1], "final") is None  # one value has no deviation


def test_paired_tests_use_the_kept_trajectories(runs: list[Path]):
    base, rl = paired_tests(runs, align(rows_of(runs)))
    assert (base["difference"], base["better"], base["worse"], base["p"]) == (0.0, 0, 0, 1.0)
    assert (rl["difference"], rl["better"], rl["worse"]) == (20.0, 8, 0) and rl["p"] == 2 / 2**8
    assert "rl on chains: b against a +20.0 points" in sentences([rl])[0]


def test_rows_of_one_run_are_tested_against_its_first_row(runs: list[Path]):
    rows = rows_of(runs)[1]
    (found,) = compare_within(runs[1], rows)
    assert (found["first"], found["second"], found["difference"]) == ("base", "rl", 30.0)
    assert compare_within(runs[1], rows[:1]) == []


def test_the_table_has_every_value_and_their_mean_from_three_runs_on(runs: list[Path]):
    rows = rows_of(runs)
    assert "| rl · chains | 60.0 / 80.0 |" in comparison_table(rows)
    assert "60.0 / 80.0 / 60.0 (66.7 ± 11.5)" in comparison_table([*rows, rows[0]])


def test_the_command_prints_table_and_tests_and_writes_a_page(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "compare.html"
    assert main(["compare", "a", "b", f"run.directory={tmp_path}", "--output", str(page)]) == 0
    printed, text = capsys.readouterr().out, page.read_text("utf-8")
    assert "| rl · chains |" in printed and "+20.0 points" in printed
    assert "run.seed" in text and "+20.0" in text and text.count("<svg") == 3 and "mean ± deviation" in text
    assert "://" not in text.replace("http://www.w3.org", "")


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [made_up_run(tmp_path / folder / "tiny", {"rl": right}) for folder, right in (("new", 24), ("old", 32))]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    assert "rl on chains: old/tiny against tiny +20.0 points" in capsys.readouterr().out
    assert "<th>tiny</th><th>old/tiny</th>" in (tmp_path / "page.html").read_text("utf-8")


def test_one_run_or_none_is_refused_in_one_line(runs: list[Path], tmp_path: Path, capsys):
    assert main(["compare", str(runs[0])]) == 2
    assert "at least two runs" in capsys.readouterr().err
    assert main(["compare", str(runs[0]), str(tmp_path / "nothing")]) == 2
    assert "no run with results in it" in capsys.readouterr().err
