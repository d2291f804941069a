"""Stage 2 killed with -9 and started again: every prompt is trained once, and the end is that of a run left alone.

`python -m benchmarks.rl_resume` does it twenty times; test_rl_loop.py at every moment, with simulated engines and learners.
"""

from pathlib import Path

import pytest

from benchmarks.rl_resume import COMPARED, comparison, disturbed, equal, finish, records

pytestmark = pytest.mark.long

STEPS = 6
FEW = [f"rl.steps={STEPS}", "rl.evaluate_every=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(left alone, killed twice and continued)"""
    folder = tmp_path_factory.mktemp("runs")
    killed, done = disturbed(folder / "killed", 2, 1, FEW)
    assert len(done) == 2, "the run ended before both kills"
    return finish(folder / "alone", FEW), killed


def test_every_prompt_is_trained_once_and_the_weights_are_those_of_a_run_left_alone(runs):
    result = comparison(*runs)
    assert equal(result), result


def test_a_killed_run_records_every_step_once_with_the_numbers_of_one_left_alone(runs):
    alone, killed = (records(run, "metrics.jsonl") for run in runs)
    assert [record["step"] for record in killed] == list(range(STEPS))
    for expected, found in zip(alone, killed, strict=True):
        for name in COMPARED:
            assert found.get(name) == pytest.approx(expected.get(name), rel=1e-3, abs=1e-5), name
    validations = [[record["step"] for record in records(run, "metrics.jsonl", "rl-validation")] for run in runs]
    assert validations[0] == validations[1] == [0, 2, 4, 6]


def test_rollout_and_learner_shook_hands(runs):
    assert all(record["gap"] < 1e-4 and record["tokens"] > 50 for record in records(runs[0], "metrics.jsonl", "handshake"))


def test_the_first_step_after_a_sync_has_ratio_one_and_kl_zero(runs):
    first = next(record for record in records(runs[0], "metrics.jsonl") if "ratio" in record)
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["policy_age_max"] == 0 and first["logprob_gap"] < 1e-4


def test_nothing_to_resume_from_is_left_when_the_phase_is_done(runs):
    assert not (runs[1] / "resume" / "rl").exists()
