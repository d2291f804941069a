"""Sampling with real engines, killed without warning. `python -m benchmarks.exactly_once` does it ten times."""

from pathlib import Path

import pytest

from benchmarks import exactly_once
from benchmarks.exactly_once import comparison, disturbed, equal, undisturbed

FEW = ["stage1.prompts=32", "stage1.block=2", "stage1.attempts=2", "rollout.threads=1"]


@pytest.mark.long
def test_after_kills_of_the_engine_and_the_driver_the_samples_are_those_of_an_undisturbed_run(tmp_path: Path):
    undisturbed(tmp_path / "undisturbed", FEW)
    killed = disturbed(tmp_path / "disturbed", ["engine", "driver"], 0, FEW)
    result = comparison(tmp_path / "undisturbed", tmp_path / "disturbed")
    assert equal(result), (killed, result)
    assert len(killed) == 2, "the run ended before both kills"


@pytest.mark.parametrize(("happened", "status"), [(2, 0), (1, 1), (0, 1)])
def test_a_run_that_ends_before_all_kills_shows_nothing(happened: int, status: int, monkeypatch, capsys):
    same = {"demonstrations equal": True, "ids twice": 0, "ids missing or extra": 0, "rows that differ": 0, "files left over": []}
    monkeypatch.setattr(exactly_once, "undisturbed", lambda folder, settings: None)
    monkeypatch.setattr(exactly_once, "disturbed", lambda folder, victims, seed, settings: victims[:happened])
    monkeypatch.setattr(exactly_once, "comparison", lambda first, second: same)
    monkeypatch.setattr("sys.argv", ["exactly_once", "--kills", "1", "--folder", "nowhere"])
    assert exactly_once.main() == status
