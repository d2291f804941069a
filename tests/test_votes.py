"""Voting, best-of-n and change metrics against brute force over all subsets."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.evaluation.change import answer_changed, edit_distance, edit_ratio
from srl.evaluation.report.results import matched_table
from srl.evaluation.scaling import scaling
from srl.evaluation.tables import figure_2
from srl.evaluation.votes import (
    RIGHT,
    Answer,
    accuracy_at_tokens,
    answer_key,
    at_turns,
    best_of,
    early_stop,
    final_answers,
    first_answers,
    majority,
    mean_over_problems,
    oracle_at,
    verdict_score,
    vote,
    weighted_vote,
)  # fmt: skip
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind, Verdict

KEYS = st.sampled_from([RIGHT, "wrong 1", "wrong 2", "wrong 3", None])
ANSWERS = st.lists(st.builds(Answer, KEYS, st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 9)), min_size=1, max_size=7)


def turn(kind: str, answer: str | None, right: bool = False, tokens: int = 2) -> Turn:
    outcome = Outcome.CORRECT if right else Outcome.INCORRECT if answer is not None else Outcome.NO_ANSWER
    return Turn(TurnKind(kind), [1] * tokens, logprobs=[-0.1] * tokens, answer=answer, outcome=outcome)


def says(verdict: str) -> Turn:
    return Turn(TurnKind.VERDICT, [2], logprobs=[-0.1], verdict=Verdict(verdict))


def trajectory(name: str, *turns: Turn, problem: str = "p") -> Trajectory:
    return Trajectory(name, problem, "question", "7", [0], list(turns))


def counted(answers: tuple[Answer, ...]) -> float:
    """A vote by counting by hand, in another way than the code: sorted list of counts."""
    keys = [answer.key for answer in answers if answer.key is not None]
    best = sorted({key: keys.count(key) for key in keys}.items(), key=lambda item: -item[1])
    tied = [key for key, count in best if count == best[0][1]]
    return tied.count(RIGHT) / len(tied) if tied else 0.0


@settings(max_examples=150)
@given(ANSWERS, st.data())
def test_majority_equals_the_mean_over_all_subsets(answers, data):
    n = data.draw(st.integers(1, len(answers)))
    all_of_n = list(itertools.combinations(answers, n))
    assert majority(answers, n) == pytest.approx(sum(map(counted, all_of_n)) / len(all_of_n))


@settings(max_examples=100)
@given(ANSWERS, st.data())
def test_best_of_n_equals_the_mean_over_all_subsets(answers, data):
    n = data.draw(st.integers(1, len(answers)))
    found = []
    for subset in itertools.combinations(answers, n):
        top = max(-1 if answer.key is None else answer.score for answer in subset)
        best = [answer for answer in subset if (-1 if answer.key is None else answer.score) == top]
        found.append(sum(answer.right for answer in best) / len(best))
    assert best_of(answers, n) == pytest.approx(sum(found) / len(found))


def test_majority_of_one_is_the_mean_and_of_all_is_the_vote():
    answers = [Answer(RIGHT), Answer(RIGHT), Answer("wrong 1"), Answer(None)]
    assert majority(answers, 1) == 0.5 and majority(answers, 4) == 1.0


def test_majority_of_64_samples_is_fast_and_rises_when_right_is_most_common():
    answers = [Answer(RIGHT)] * 28 + [Answer(f"wrong {index % 12}") for index in range(36)]
    curve = [majority(answers, n) for n in (1, 4, 16, 64)]
    assert curve == sorted(curve) and curve[0] == 28 / 64 and curve[-1] == 1.0


def test_a_sample_size_that_is_not_there_is_refused():
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"n={n} of 2 samples"):
            majority([Answer(RIGHT), Answer(None)], n)


def test_weights_decide_a_vote_and_equal_weights_are_a_majority():
    answers = [Answer(RIGHT, 1.0), Answer("wrong 1", 0.0), Answer("wrong 1", 0.0)]
    assert vote(answers) == 0.0 and weighted_vote(answers, 3) == 1.0
    unsure = [Answer(answer.key, 0.0) for answer in answers]
    assert weighted_vote(unsure, 3) == vote(unsure)
    assert weighted_vote(answers, 1, draws=2000) == pytest.approx(1 / 3, abs=0.04)


def test_ties_count_as_a_share_and_no_answer_never_wins():
    assert vote([Answer(RIGHT), Answer("wrong 1")]) == 0.5
    assert vote([Answer(None), Answer(None), Answer(RIGHT)]) == 1.0
    assert vote([Answer(None)]) == 0.0


def test_wrong_answers_of_equal_value_are_one_vote_and_right_ones_too():
    halves = [answer_key(turn("attempt", text)) for text in ("0.5", r"\frac{1}{2}", "1/2")]
    assert len(set(halves)) == 1 and halves[0] != RIGHT
    assert answer_key(turn("attempt", "x", right=True)) == answer_key(turn("attempt", "y", right=True)) == RIGHT
    assert answer_key(turn("attempt", None)) is None is answer_key(None)


def test_ungraded_answers_are_refused():
    with pytest.raises(ValueError, match="ungraded attempt"):
        answer_key(Turn(TurnKind.ATTEMPT, [1], answer="7"))


def test_the_score_is_the_last_verdict_on_the_final_answer():
    first, second = turn("attempt", "6"), turn("revision", "7", right=True)
    assert verdict_score(trajectory("a", first, says("correct"))) == 1.0
    assert verdict_score(trajectory("b", first, says("wrong"))) == 0.0
    assert verdict_score(trajectory("c", first, says("wrong"), second)) == 0.5  # nothing was said of the revision
    assert verdict_score(trajectory("d", first, says("wrong"), second, says("correct"))) == 1.0
    assert verdict_score(trajectory("e")) == 0.5
    nothing = turn("revision", None)  # the attempt, which was called wrong, stays the answer
    assert verdict_score(trajectory("f", first, says("wrong"), nothing, says("correct"))) == 0.0


def sequential() -> list[Trajectory]:
    right, wrong = turn("revision", "7", right=True), turn("revision", "6")
    return [
        trajectory("1", turn("attempt", "6"), wrong, right),
        trajectory("2", turn("attempt", "7", right=True), says("correct")),
        trajectory("3", turn("attempt", "5"), right, right),
    ]


def test_votes_over_samples_and_turns_worked_by_hand():
    group = sequential()
    assert at_turns(group, 1, 1) == 0.0  # 6
    assert at_turns(group, 3, 1) == 1 / 3  # 6, 7, 5
    assert at_turns(group, 1, 3) == 0.0  # 6, 6, 7
    assert at_turns(group, 2, 3) == 1.0  # 6, 6, 7 and 7, 7, 7
    assert [oracle_at(group[0], k) for k in (1, 2, 3)] == [False, False, True]
    with pytest.raises(ValueError, match="m4@t1: the problem has 3 samples"):
        at_turns(group, 4, 1)


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_m_n_at_t1_of_all_samples_is_maj_at_n(rights):
    group = [trajectory(str(i), turn("attempt", "7" if right else "6", right)) for i, right in enumerate(rights)]
    assert at_turns(group, len(group), 1) == pytest.approx(majority(first_answers(group)["p"], len(group)))


def test_problems_are_averaged_whatever_the_order_of_trajectories():
    group = [*sequential(), trajectory("4", turn("attempt", "1"), problem="q"), trajectory("5", problem="q"),
             trajectory("6", turn("attempt", "7", right=True), problem="q")]  # fmt: skip
    groups = final_answers(group)
    assert groups == final_answers(group[::-1]) and list(groups) == ["p", "q"]
    assert mean_over_problems(groups, 3, majority) == 75.0  # p: 7, 7, 7; q: a tie of 1 and 7
    assert [answer.tokens for answer in groups["p"]] == [6, 3, 6]


def test_a_token_budget_buys_more_cheap_answers_than_dear_ones():
    cheap = {"p": [Answer(RIGHT, tokens=10)] * 5 + [Answer("wrong 1", tokens=10)] * 4}
    assert accuracy_at_tokens(cheap, 9)[1:] == (10.0, 1.0)  # the first answer is always paid
    accuracy, tokens, samples = accuracy_at_tokens(cheap, 95)
    assert (accuracy, tokens, samples) == (100.0, 90.0, 9.0)
    dear = {"p": [Answer(answer.key, tokens=30) for answer in cheap["p"]]}
    assert accuracy_at_tokens(dear, 95)[2] == 3.0
    assert accuracy_at_tokens(cheap, 30, draws=400)[0] == pytest.approx(100 * majority(cheap["p"], 3), abs=6)


def test_both_sides_can_spend_what_they_are_compared_at():
    """A trajectory costs 12 tokens here and its attempt 2: eight attempts cost no more than 16, not two trajectories' 24."""
    chain = [turn("attempt", "6"), turn("revision", "7", right=True, tokens=10)]
    found = scaling([trajectory(f"{problem}/{index}", *chain, problem=problem) for problem in "pq" for index in range(8)])
    assert [point["budget"] for point in found["matched"]] == [12.0, 16.0]
    assert [point["independent"][1:] for point in found["matched"]] == [[12.0, 6.0], [16.0, 8.0]]  # tokens, attempts
    assert all(point["self_rewarding"] == [100.0, 12.0, 1.0] for point in found["matched"])
    few = scaling([trajectory(f"p/{index}", *chain) for index in range(4)])  # four attempts cost less than one trajectory
    assert few["matched"] == [] and "too few" in figure_2([{"scaling": few}]) and "too few" in matched_table([{"scaling": few}])
    alone = scaling([trajectory(f"p/{index}", turn("attempt", "7", right=True)) for index in range(4)])
    assert [point["budget"] for point in alone["matched"]] == [2.0, 4.0, 8.0]


def test_sampling_ends_at_the_first_answer_that_the_model_calls_correct():
    right, wrong = (Answer(key, 1.0) for key in (RIGHT, "wrong 1"))
    assert early_stop([right, wrong], 2)[1] == 1.0 and early_stop([right, wrong], 2)[0] == pytest.approx(0.5, abs=0.15)
    # Beside an answer that is not called correct it is the first or the second of two: 1.5 on average, and always right.
    found = early_stop([right, Answer("wrong 1", 0.5)], 2, draws=2000)
    assert found[0] == 1.0 and found[1] == pytest.approx(1.5, abs=0.05)
    # Nothing is called correct, or nothing that answers: the majority of all decides.
    assert early_stop([Answer(RIGHT, 0.5), Answer(RIGHT), Answer("wrong 1")], 3) == (1.0, 3.0)
    assert early_stop([Answer(None, 1.0), Answer(RIGHT)], 2) == (1.0, 2.0)


def test_curves_over_samples_and_turns_worked_by_hand():
    # p: right after a revision, at once, and never; q: never. Every turn has 2 tokens, every verdict 1.
    never = [turn("attempt", "6")]
    found = scaling(
        [
            trajectory("1", turn("attempt", "6"), turn("revision", "7", right=True)),
            trajectory("2", turn("attempt", "7", right=True), says("correct")),
            *(trajectory(f"3{name}", *never) for name in "ab"),
            *(trajectory(f"{n}", *never, problem="q") for n in range(4)),
        ]
    )
    assert (found["n"], found["answers"], found["tokens"]) == ([1, 2, 4], [1.12, 2.25, 4.5], [2.4, 4.8, 9.5])
    assert found["maj"][0] == 25.0 and found["maj"][-1] == 25.0  # 2 of 4 and 0 of 4; of all a tie and nothing
    assert found["independent"] == [12.5, 12.5, 0.0]  # one of p's four, in half of the pairs, as a tie
    assert found["best_of"][-1] == 50.0  # p's second alone is called correct
    # p ends at its second sample, the 2.5th of a random order on average; q uses all four.
    assert found["early_stop"][-1] == [50.0, pytest.approx(3.25, abs=0.15)]
    assert found["oracle_by_turn"] == [12.5, 25.0]
    assert found["m_by_turn"] == [0.0, 0.0]  # p after two turns: 6 and 7, 7 twice, 6 four times


def test_a_changed_answer_is_another_value_not_another_text():
    assert not answer_changed(trajectory("a", turn("attempt", "0.5"), turn("revision", r"\frac{1}{2}")))
    assert answer_changed(trajectory("b", turn("attempt", "0.5"), turn("revision", "0.6")))
    assert not answer_changed(trajectory("c", turn("attempt", "0.5"), turn("revision", None)))  # the attempt stands
    assert not answer_changed(trajectory("d"))


def by_rows(first: list[int], second: list[int]) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), max_size=70), st.lists(st.integers(0, 3), max_size=70))
def test_edit_distance_equals_the_textbook_table(first, second):
    assert edit_distance(first, second) == by_rows(first, second)


def test_edit_ratio_of_equal_other_and_missing_answers():
    assert edit_ratio([1, 2, 3], [1, 2, 3]) == 0.0 == edit_ratio([], [])
    assert edit_ratio([1, 2], [3, 4]) == 0.5 and edit_ratio([1, 2], []) == 1.0


def test_what_a_judge_said_and_a_verdict_without_format_do_not_change_the_models_own_score():
    attempt = turn("attempt", "6")
    told = Turn(TurnKind.INSTRUCTION, [3], verdict=Verdict.WRONG)
    assert verdict_score(trajectory("a", attempt, told)) == 0.5
    assert verdict_score(trajectory("b", attempt, says("correct"), Turn(TurnKind.VERDICT, [2], logprobs=[-0.1]))) == 1.0


@pytest.mark.parametrize("rule", [majority, best_of, weighted_vote, early_stop])
def test_no_rule_takes_more_samples_than_there_are_or_none(rule):
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"n={n} of 2 samples per problem"):
            rule([Answer(RIGHT), Answer(None)], n)


def test_first_answers_and_votes_over_turns_go_by_id_whatever_the_order_of_trajectories():
    group = sequential()  # 6, 7 and 5 at first
    turned = [*group[1:], group[0]]
    assert first_answers(turned) == first_answers(group)
    assert [at_turns(turned, n, 1) for n in (1, 2, 3)] == [0.0, 0.5, 1 / 3]


def test_votes_of_weight_zero_count_for_nothing():
    assert vote([Answer(RIGHT, 0.0), Answer("wrong 1", 0.0)], lambda answer: answer.score) == 0.0


def test_where_no_drawn_answer_has_a_score_the_majority_decides_by_score_and_an_answer_that_is_none_has_no_say():
    unsure = [Answer(RIGHT, 0.0), Answer(RIGHT, 0.0), Answer("wrong 1", 0.0)]
    assert weighted_vote(unsure, 3) == 1.0
    assert weighted_vote([*unsure, Answer(None, 1.0)], 4) == 1.0


def test_a_trajectory_that_took_two_turns_of_three_votes_once_more_with_its_last_answer():
    group = [trajectory("1", turn("attempt", "6"), turn("revision", "7", right=True))]
    assert at_turns(group, 1, 3) == 1.0  # 6, 7 and 7
    assert at_turns([trajectory("2")], 1, 3) == 0.0


def test_a_trajectory_without_an_answer_is_a_first_answer_that_cost_nothing():
    assert first_answers([trajectory("1")]) == {"p": [Answer(None, 0.0, 0)]}


def test_a_budget_pays_for_each_answer_what_that_one_cost():
    groups = {"p": [Answer(RIGHT, tokens=10), Answer("wrong 1", tokens=30)], "q": [Answer(RIGHT, tokens=4)]}
    # p takes both for 40, a tie; q its only one.
    assert accuracy_at_tokens(groups, 40) == (75.0, 22.0, 1.5)


def test_curves_end_with_the_samples_that_every_problem_has_and_are_means_over_problems():
    late = [turn("attempt", "6"), turn("revision", "7", right=True)]
    found = scaling(
        [trajectory(f"p/{n}", *late) for n in range(3)]
        + [trajectory(f"q/{n}", turn("attempt", "7", right=True), problem="q") for n in range(2)]
    )
    assert found["n"] == [1, 2] and found["early_stop"] == [[100.0, 1.0], [100.0, 2.0]]
    assert found["oracle_by_turn"] == [40.0, 100.0]  # 2 of 5 trajectories, then all
    assert found["m_by_turn"] == [50.0, 75.0]  # q alone; then p has a tie of 6 and 7


def test_sizes_double_in_order_up_to_all_samples():
    right = turn("attempt", "7", right=True)
    found = scaling([trajectory(f"p/{n:02}", right) for n in range(70)])
    assert found["n"] == [1, 2, 4, 8, 16, 32, 64, 70] and found["oracle_by_turn"] == [100.0]
    assert [point["budget"] for point in scaling([trajectory("p", right)])["matched"]] == [2.0]


def test_what_follows_an_attempt_of_no_tokens_is_all_new():
    assert edit_ratio([], [1, 2]) == 1.0
