"""Sampling with real engines, killed without warning. `python -m benchmarks.exactly_once` does it ten times."""

from pathlib import Path

import pytest

from benchmarks.exactly_once import comparison, disturbed, equal, undisturbed

pytestmark = pytest.mark.long

FEW = ["stage1.prompts=32", "stage1.block=2", "stage1.attempts=2", "rollout.threads=1"]


def test_after_kills_of_the_engine_and_the_driver_the_samples_are_those_of_an_undisturbed_run(tmp_path: Path):
    undisturbed(tmp_path / "undisturbed", FEW)
    killed = disturbed(tmp_path / "disturbed", ["engine", "driver"], 0, FEW)
    result = comparison(tmp_path / "undisturbed", tmp_path / "disturbed")
    assert equal(result), (killed, result)
    assert len(killed) == 2, "the run ended before both kills"
