"""Whole nodes that die: `python -m benchmarks.nodes` kills one of each kind, in a longer run."""

import tempfile
from pathlib import Path

import pytest

from benchmarks.nodes import experiment
from benchmarks.rl_resume import equal

pytestmark = pytest.mark.long


def test_after_the_death_of_a_learner_node_and_of_the_head_the_ledger_and_the_weights_are_those_of_a_run_left_alone():
    with tempfile.TemporaryDirectory(prefix="srl-nodes-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        result = experiment(Path(folder), ["learner", "head"], 1, ["rl.steps=10", "rl.evaluate_every=5"])
    assert equal(result), result
    assert [kill["victim"] for kill in result["kills"]] == ["learner", "head"], "the run ended before both kills"
    assert not result["jobs that ended by themselves"], result
