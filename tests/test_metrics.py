"""Numbers are worked by hand in the comments beside them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.evaluation import metrics
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

RIGHT, WRONG = Outcome.CORRECT, Outcome.INCORRECT
KEYS = [
    "method", "benchmark", "n", "temperature", "turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong",
    "format_failures", "samples_per_trajectory", "tokens_per_trajectory", "cl", "cs", "rss", "answer_change", "edit_ratio",
    "mcnemar_p", "ci95", "final_ci95", "trajectories", "transitions", "verdicts", "rounds", "by_turn", "stops", "outcomes",
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
    assert found["ci95"]["final"] == found["final_ci95"] and found["final_ci95"][0] >= 0
    assert {key: found[key] for key in KEYS[: KEYS.index("ci95")]} == {
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
        "cl": 50.0,  # of the 2 right first attempts, a stayed right
        "cs": 33.33,  # of the 3 wrong ones, b became right
        "rss": 0.5,  # nothing gained: (0.4 - 0.16) / (2 * 0.4 * 0.6)
        "answer_change": 40.0,  # b and the first c; all wrong answers of the example say 7, as the right ones
        "edit_ratio": 0.0,  # both revisions repeat the attempt's tokens
        "mcnemar_p": 1.0,
    }
    assert found["transitions"] == {"right->right": 1, "right->wrong": 1, "wrong->right": 1, "wrong->wrong": 2}
    assert found["rounds"] == {"0": 3, "1": 2}
    assert found["by_turn"] == [40.0, 40.0]


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
    silent = metrics.confusion([trajectory("a", attempt(RIGHT), Turn(TurnKind.VERDICT, [1]))])
    assert silent["right"] == {"correct": 0, "wrong": 0, "nothing": 1}
    assert metrics.verdict_scores(silent)["accuracy"] == 0.0


def test_verdicts_of_a_judge_outside_are_what_was_told_and_its_last_word():
    told_wrong = told()
    told_wrong.verdict = Verdict.WRONG
    found = metrics.judged(trajectory("a", attempt(RIGHT), told_wrong, revision(WRONG), stop=StopReason.REJECTED))
    assert found == [(True, Verdict.WRONG), (False, Verdict.WRONG)]
    assert metrics.judged(trajectory("a", attempt(RIGHT), told(), revision(RIGHT), stop=StopReason.ACCEPTED)) == [
        (True, Verdict.CORRECT)  # an instruction without a verdict judges nothing
    ]
    assert metrics.judged(trajectory("a", says("wrong"), stop=StopReason.ACCEPTED)) == []


def test_the_edit_ratio_is_that_of_first_attempt_and_last_answer():
    # Last answer of 4 tokens, all others, instead of 10: 10 edits of 14. Beside it a revision that changes nothing.
    changed = revision(WRONG)
    changed.token_ids = [5, 5, 5, 5]
    many = [
        trajectory("a", attempt(WRONG), revision(WRONG), changed),
        trajectory("b", attempt(WRONG), revision(WRONG)),
        trajectory("c", attempt(WRONG)),
    ]
    assert metrics.mean_edit_ratio(many) == pytest.approx(5 / 14, abs=1e-4)
    assert metrics.mean_edit_ratio(many[2:]) is None


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
    assert one == two


def test_counts_name_every_outcome_and_stop_reason():
    assert metrics.outcome_counts(example()) == {"correct": 3, "incorrect": 4, "no_answer": 0, "unparsable": 0, "timeout": 0}
    found = metrics.stop_counts(example())
    assert list(found) == [reason.value for reason in StopReason]
    assert {name: count for name, count in found.items() if count} == {
        "verified": 2, "rounds": 1, "no_verdict": 1, "no_revision": 1
    }  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(TRAJECTORIES, min_size=1, max_size=30))
def test_final_follows_from_turn1_confidence_and_critique(trajectories):
    counts = metrics.transition_counts(trajectories)
    found = metrics.confidence_critique(counts)
    first = (counts["right->right"] + counts["right->wrong"]) / len(trajectories)
    final = (counts["right->right"] + counts["wrong->right"]) / len(trajectories)
    # Rounded to hundredths of a per cent; a conditional that has no cases has no weight either.
    assert first * (found["cl"] or 0) / 100 + (1 - first) * (found["cs"] or 0) / 100 == pytest.approx(final, abs=1e-4)
    if final == first and 0 < first < 1:
        assert found["rss"] == 0.5
    assert (found["rss"] is None) == (first in (0, 1))
    if found["rss"] is not None:  # between the bounds (CL = turn 1, CS = 0) and (CL = 1, CS = turn 1)
        lower, upper = first**2, 2 * first - first**2
        assert found["rss"] == pytest.approx((final - lower) / (upper - lower), abs=1e-4)


def test_verdict_scores_equal_the_numbers_worked_by_hand():
    # 10 right answers: 8 called correct, 1 wrong, 1 nothing. 5 wrong answers: 2 called correct, 3 wrong.
    found = metrics.verdict_scores({
        "right": {"correct": 8, "wrong": 1, "nothing": 1}, "wrong": {"correct": 2, "wrong": 3, "nothing": 0}
    })  # fmt: skip
    assert found["accuracy"] == 73.33  # 11 of 15
    assert found["of_correct"] == {"precision": 80.0, "recall": 80.0, "f1": 80.0}
    assert found["of_wrong"] == {"precision": 75.0, "recall": 60.0, "f1": 66.67}  # 3 of 4, 3 of 5, 2 * 3 / (4 + 5)
    assert found["balanced_accuracy"] == 70.0


def test_balanced_accuracy_is_none_with_one_kind_of_answer():
    only = {"right": {"correct": 1, "wrong": 0, "nothing": 0}, "wrong": {"correct": 0, "wrong": 0, "nothing": 0}}
    assert metrics.verdict_scores(only)["balanced_accuracy"] is None
    assert metrics.verdict_scores(only)["of_wrong"] == {"precision": None, "recall": None, "f1": None}


@settings(deadline=None, max_examples=60)
@given(st.lists(TRAJECTORIES, min_size=1, max_size=30))
def test_accuracy_by_turn_begins_with_turn1_and_ends_with_final(trajectories):
    found = metrics.summarise(trajectories, method="m", benchmark="b", temperature=1.0, bootstrap=100)
    assert (found["by_turn"][0], found["by_turn"][-1]) == (found["turn1"], found["final"])
    assert sum(found["rounds"].values()) == len(trajectories)


def test_intervals_resample_problems_not_trajectories():
    # 25 problems of 40 equal trajectories, 20 right: sd of the mean is sqrt(0.8 * 0.2 / 25) = 8 points, not 1.3.
    many = [trajectory(str(p), attempt(RIGHT if p < 20 else WRONG)) for p in range(25) for _ in range(40)]
    found = metrics.summarise(many, method="m", benchmark="b", temperature=1.0)["ci95"]
    assert 60 <= found["final"][0] <= 68 and 92 <= found["final"][1] <= 96
    assert found["turn1"] == found["final"] and found["delta"] == [0.0, 0.0]
    assert found["verdict_wrong"] is None


def test_of_a_single_problem_every_interval_is_the_number_itself():
    alike = example()
    for item in alike:
        item.prompt_id = "a"
    found = metrics.summarise(alike, method="m", benchmark="b", temperature=1.0, bootstrap=20)
    assert found["ci95"] == {name: [found[name]] * 2 for name in found["ci95"]} and len(found["ci95"]) == 9
    assert metrics.right_by_problem(alike) == {"a": (2, 5)}


def test_without_revisions_there_is_one_turn_to_be_right_after():
    found = metrics.summarise([trajectory("a", attempt(RIGHT))], method="m", benchmark="b", temperature=1.0)
    assert found["by_turn"] == [100.0] and found["rounds"] == {"0": 1}


@pytest.mark.parametrize("samples", [1, 40])
def test_more_samples_of_the_same_problems_make_no_change_surer(samples: int):
    """5 problems are gained by revising, 1 is lost, 3 stay: p = 2 (C(6,0) + C(6,1)) / 2^6, however often each is asked."""
    turns = [(attempt(WRONG), revision(RIGHT))] * 5 + [(attempt(RIGHT), revision(WRONG))] + [(attempt(RIGHT),)] * 3
    many = [trajectory(str(problem), *own) for problem, own in enumerate(turns) for _ in range(samples)]
    assert metrics.summarise(many, method="m", benchmark="b", temperature=1.0, bootstrap=100)["mcnemar_p"] == 14 / 64


def test_after_each_turn_stands_the_last_answer_that_there_was_by_then():
    # Right, a revision without an answer, wrong; and a trajectory that answered nothing.
    many = [
        trajectory("a", attempt(RIGHT), revision(Outcome.NO_ANSWER), revision(WRONG)),
        trajectory("b", stop=StopReason.LENGTH),
    ]
    assert metrics.accuracy_by_turn(many) == [50.0, 50.0, 0.0]


def test_a_format_failure_is_every_end_that_cuts_a_trajectory_off_or_leaves_out_what_should_follow_and_no_other():
    def failures(reason: StopReason) -> float:
        found = metrics.summarise([trajectory("a", attempt(RIGHT), stop=reason)], method="m", benchmark="b", temperature=1.0)
        return found["format_failures"]

    cut_off = {StopReason.LENGTH, StopReason.TOKENS, StopReason.TIME, StopReason.NO_VERDICT, StopReason.NO_REVISION}
    assert {reason: failures(reason) for reason in StopReason} == {reason: 100.0 * (reason in cut_off) for reason in StopReason}


def test_an_ungraded_answer_is_not_counted_as_a_wrong_one_of_its_problem():
    ungraded = attempt(RIGHT)
    ungraded.outcome = None
    for count in (metrics.right_by_problem, metrics.accuracy_by_turn, metrics.transition_counts):
        with pytest.raises(ValueError, match="ungraded attempt"):
            count([trajectory("a", ungraded)])


def test_a_trajectory_that_has_not_stopped_is_counted_as_unfinished():
    assert "unfinished" not in metrics.stop_counts(example())
    assert metrics.stop_counts([*example(), trajectory("e", stop=None)])["unfinished"] == 1


def test_of_a_single_problem_with_more_gains_than_losses_every_interval_is_its_own_number():
    # Right at first 2 of 5, in the end 3 of 5: 2 gained, 1 lost.
    changes = [(RIGHT, RIGHT), (RIGHT, WRONG), (WRONG, RIGHT), (WRONG, RIGHT), (WRONG, WRONG)]
    many = [trajectory("a", attempt(first), says("wrong"), revision(last)) for first, last in changes]
    found = metrics.summarise(many, method="m", benchmark="b", temperature=1.0, bootstrap=20)
    numbers = {"turn1": 40.0, "final": 60.0, "delta": 20.0, "i2c": 40.0, "c2i": 20.0, "cl": 50.0, "cs": 66.67}
    assert {name: (found[name], found["ci95"][name]) for name in numbers} == {n: (x, [x, x]) for n, x in numbers.items()}


def test_the_edit_ratio_begins_at_the_first_attempt_not_at_the_answer_before_the_last():
    # 10 tokens, then 4 others that stay: 10 edits of 14.
    turns = [attempt(WRONG), revision(WRONG, 4), revision(WRONG, 4)]
    for turn in turns[1:]:
        turn.token_ids = [5, 5, 5, 5]
    assert metrics.mean_edit_ratio([trajectory("a", *turns)]) == pytest.approx(10 / 14, abs=1e-4)
