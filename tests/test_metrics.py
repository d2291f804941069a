"""Numbers are worked by hand in the comments beside them."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.evaluation import metrics
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

RIGHT, WRONG = Outcome.CORRECT, Outcome.INCORRECT
KEYS = [
    "method", "benchmark", "n", "temperature", "turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong",
    "format_failures", "samples_per_trajectory", "tokens_per_trajectory", "final_ci95",
]  # fmt: skip


def attempt(outcome: Outcome, tokens: int = 10) -> Turn:
    answer = None if outcome is Outcome.NO_ANSWER else "7"
    return Turn(TurnKind.ATTEMPT, [1] * tokens, logprobs=[-0.1] * tokens, answer=answer, outcome=outcome)


def revision(outcome: Outcome, tokens: int = 10) -> Turn:
    turn = attempt(outcome, tokens)
    turn.kind = TurnKind.REVISION
    return turn


def says(verdict: str, tokens: int = 5) -> Turn:
    return Turn(TurnKind.VERDICT, [2] * tokens, logprobs=[-0.1] * tokens, verdict=Verdict(verdict))


def told(tokens: int = 3) -> Turn:
    return Turn(TurnKind.INSTRUCTION, [3] * tokens)


def trajectory(problem: str, *turns: Turn, stop: StopReason = StopReason.ROUNDS) -> Trajectory:
    return Trajectory(f"{problem}-{id(turns)}", problem, "question", "7", [0], list(turns), stop)


def example() -> list[Trajectory]:
    return [
        trajectory("a", attempt(RIGHT), says("correct"), stop=StopReason.VERIFIED),  # right->right, 15 tokens
        trajectory("b", attempt(WRONG), says("wrong"), told(), revision(RIGHT)),  # wrong->right, 25 sampled
        trajectory("c", attempt(RIGHT), says("wrong"), revision(WRONG), says("wrong"), stop=StopReason.NO_REVISION),  # 30
        trajectory("c", attempt(WRONG), says("correct"), stop=StopReason.VERIFIED),  # wrong->wrong, 15
        trajectory("d", attempt(WRONG), stop=StopReason.NO_VERDICT),  # wrong->wrong, 10
    ]


def row(**changes) -> dict:
    return metrics.summarise(example(), method="IFT", benchmark="chains", temperature=1.0) | changes


def test_summary_of_five_trajectories_equals_the_numbers_worked_by_hand():
    found = row()
    assert found.pop("final_ci95")[0] >= 0
    assert found == {
        "method": "IFT",
        "benchmark": "chains",
        "n": 4,  # problems a, b, c, d
        "temperature": 1.0,
        "turn1": 40.0,  # a and the first c: 2 of 5
        "final": 40.0,  # a and b: 2 of 5
        "delta": 0.0,
        "i2c": 20.0,  # b
        "c2i": 20.0,  # the first c
        "verdict_correct": 50.0,  # right attempts: a said correct, c said wrong
        "verdict_wrong": 66.67,  # wrong answers: b wrong, revision of c wrong, second c correct: 2 of 3
        "format_failures": 40.0,  # no_revision and no_verdict: 2 of 5
        "samples_per_trajectory": 1.4,  # (1 + 2 + 2 + 1 + 1) / 5
        "tokens_per_trajectory": 19.0,  # (15 + 25 + 30 + 15 + 10) / 5; the instruction was not sampled
    }


def test_keys_come_in_the_order_of_the_results_table():
    assert list(row()) == KEYS


def test_verdict_accuracy_is_none_without_such_verdicts():
    found = metrics.summarise([trajectory("a", attempt(RIGHT))], method="m", benchmark="b", temperature=0.0)
    assert found["verdict_correct"] is None and found["verdict_wrong"] is None


def test_a_revision_without_an_answer_leaves_the_attempt_as_final():
    cut = trajectory("a", attempt(RIGHT), says("wrong"), revision(Outcome.NO_ANSWER), stop=StopReason.LENGTH)
    assert metrics.transition(cut) == "right->right"


def test_a_trajectory_without_any_answer_turn_is_wrong():
    assert metrics.transition(trajectory("a", stop=StopReason.LENGTH)) == "wrong->wrong"


def test_only_the_outcome_correct_is_right():
    assert [o for o in Outcome if metrics.is_right(attempt(o))] == [Outcome.CORRECT]


def test_empty_list_is_refused_with_method_and_benchmark():
    with pytest.raises(ValueError, match="'IFT'.*'chains'"):
        metrics.summarise([], method="IFT", benchmark="chains", temperature=1.0)


def test_ungraded_turns_are_refused():
    ungraded = attempt(RIGHT)
    ungraded.outcome = None
    with pytest.raises(ValueError, match="ungraded attempt"):
        metrics.summarise([trajectory("a", ungraded)], method="m", benchmark="b", temperature=1.0)
    with pytest.raises(ValueError, match="1 of 1 answers are ungraded"):
        metrics.outcome_counts([trajectory("a", ungraded)])


def test_a_verdict_without_format_agrees_with_nothing():
    pairs = metrics.judged(trajectory("a", attempt(RIGHT), Turn(TurnKind.VERDICT, [1])))
    assert pairs == [(True, None)]
    assert metrics.agreement(pairs, on_right=True) == 0.0


OUTCOMES = st.sampled_from(Outcome)
TRAJECTORIES = st.builds(
    lambda problem, first, rest: trajectory(problem, attempt(first), *map(revision, rest)),
    st.sampled_from("abcdef"), OUTCOMES, st.lists(OUTCOMES, max_size=3),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(TRAJECTORIES, min_size=1, max_size=30))
def test_delta_is_i2c_minus_c2i(trajectories):
    counts = metrics.transition_counts(trajectories)
    first = sum(t.turns[0].outcome is RIGHT for t in trajectories)
    final = sum(t.final().outcome is RIGHT for t in trajectories)
    assert final - first == counts["wrong->right"] - counts["right->wrong"]
    found = metrics.summarise(trajectories, method="m", benchmark="b", temperature=1.0, bootstrap=100)
    assert found["delta"] == round(100 * (final - first) / len(trajectories), 2)
    assert found["delta"] == pytest.approx(found["i2c"] - found["c2i"], abs=0.0151)  # three roundings of 0.005
    assert sum(counts.values()) == len(trajectories)


@settings(deadline=None, max_examples=60)
@given(st.lists(TRAJECTORIES, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_order_of_trajectories_changes_no_share(trajectories, rng):
    shuffled = trajectories[:]
    rng.shuffle(shuffled)
    one, two = (metrics.summarise(t, method="m", benchmark="b", temperature=1.0, bootstrap=100) for t in (trajectories, shuffled))
    assert [one[key] for key in KEYS[:-1]] == [two[key] for key in KEYS[:-1]]


def test_bootstrap_agrees_with_a_plain_loop():
    rng = random.Random(1)
    values = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(80)]
    means = sorted(sum(rng.choices(values, k=80)) / 80 for _ in range(4000))
    low, high = metrics.bootstrap_interval(np.array(values), 4000, seed=3)
    assert low == pytest.approx(means[100], abs=0.01) and high == pytest.approx(means[3900], abs=0.01)


def test_bootstrap_resamples_problems_not_trajectories():
    # 25 problems of 40 equal trajectories, 20 right: sd of the mean is sqrt(0.8 * 0.2 / 25) = 8 points, not 1.3.
    many = [trajectory(str(p), attempt(RIGHT if p < 20 else WRONG)) for p in range(25) for _ in range(40)]
    low, high = metrics.summarise(many, method="m", benchmark="b", temperature=1.0)["final_ci95"]
    assert 60 <= low <= 68 and 92 <= high <= 96


def test_interval_repeats_for_a_seed_and_has_no_width_when_all_are_right():
    values = np.array([0.0, 1.0, 0.5, 0.5, 1.0])
    assert metrics.bootstrap_interval(values, 200, 5) == metrics.bootstrap_interval(values, 200, 5)
    assert metrics.bootstrap_interval(np.ones(4), 200, 0) == (1.0, 1.0)


def test_counts_name_every_outcome_and_stop_reason():
    assert metrics.outcome_counts(example()) == {"correct": 3, "incorrect": 4, "no_answer": 0, "unparsable": 0, "timeout": 0}
    assert metrics.stop_counts(example()) == {
        "verified": 2, "rounds": 1, "answered": 0, "no_verdict": 1, "no_revision": 1, "length": 0
    }  # fmt: skip


def test_table_fits_110_columns_and_loses_no_name():
    long = "intrinsic self-correction with a very long name indeed"
    rows = [row(), row(method=long, benchmark="olympiadbench", verdict_wrong=None)]
    table = metrics.format_table(rows)
    assert max(map(len, table.splitlines())) <= 110
    assert {*long.split(), "olympiadbench"} <= set(table.split())
    assert "40.0 [" in table and "+0.0" in table and "66.7" in table and " - " in table


def test_table_columns_are_aligned():
    lines = metrics.format_table([row(), row(method="RL", tokens_per_trajectory=1234.0)]).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
