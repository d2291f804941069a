"""Advantage estimators and credit. Numbers are worked by hand in the comments beside them."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.config import CreditConfig, CriticConfig
from srl.learner.advantages import dr_grpo, grpo, rloo, token_advantages, whiten
from srl.learner.credit import LEAST_HISTORY, assign_credit, by_history, by_prompt_kind_position, kl_weights, turn_returns
from srl.trajectory import Trajectory, Turn, TurnKind

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741
CRITIC = CriticConfig()


def chain(name: str, kinds: list[TurnKind], prompt: str = "p", tokens: int = 2) -> Trajectory:
    """Turns of that many tokens each, sampled unless they are instructions."""
    turns = [Turn(kind, [1] * tokens, logprobs=[] if kind is I else [-1.0] * tokens) for kind in kinds]
    return Trajectory(name, prompt, "", "", [7], turns)


# --- comparing within groups


def test_group_advantages_by_hand():
    # Mean 1/4, variance 1/4 * 3/4 = 3/16, deviation sqrt(3)/4: (3/4) / (sqrt(3)/4) = sqrt(3), (-1/4) / (sqrt(3)/4) = -1/sqrt(3).
    rewards, groups, owners = [1.0, 0.0, 0.0, 0.0], ["p"] * 4, "abcd"
    assert grpo(rewards, groups, owners) == pytest.approx([sqrt(3)] + [-1 / sqrt(3)] * 3)
    assert dr_grpo(rewards, groups, owners) == [0.75, -0.25, -0.25, -0.25]
    # Leaving one out: 1 - 0, and 0 - (1 + 0 + 0) / 3.
    assert rloo(rewards, groups, owners) == pytest.approx([1.0] + [-1 / 3] * 3)


def test_a_trajectory_with_many_turns_counts_once_in_its_group():
    # Trajectory a has three turns of return 1, b one of return 0: the mean is 1/2, not 3/4.
    assert dr_grpo([1.0, 1.0, 1.0, 0.0], ["p"] * 4, "aaab") == [0.5, 0.5, 0.5, -0.5]
    assert rloo([1.0, 1.0, 1.0, 0.0], ["p"] * 4, "aaab") == [1.0, 1.0, 1.0, -1.0]


def test_groups_do_not_see_each_other_and_need_not_be_adjacent():
    rewards, groups = [1.0, 5.0, 0.0, 7.0], ["p", "q", "p", "q"]  # means 0.5 and 6
    assert dr_grpo(rewards, groups, "abcd") == [0.5, -1.0, -0.5, 1.0]
    assert grpo(rewards, groups, "abcd") == [1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_group_without_signal_gets_zero(estimator, reward):
    assert estimator([reward] * 3, ["p"] * 3, "abc") == pytest.approx([0.0] * 3, abs=1e-15)
    assert estimator([], [], []) == []


def test_the_only_member_of_a_group_has_nothing_to_be_compared_with():
    assert rloo([1.0], ["p"], "a") == grpo([1.0], ["p"], "a") == [0.0]


def test_returns_groups_and_owners_must_be_equally_many():
    with pytest.raises(ValueError, match="zip"):
        grpo([1.0], ["p", "p"], "ab")


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc")), min_size=1, max_size=30))
def test_advantages_of_a_group_add_up_to_zero_with_variance_one_or_zero(pairs):
    rewards, groups = zip(*pairs, strict=True)
    found = grpo(rewards, groups, range(len(groups)))
    for group in set(groups):
        values = [value for value, name in zip(found, groups, strict=True) if name == group]
        assert sum(values) == pytest.approx(0, abs=1e-9)
        variance = sum(value**2 for value in values) / len(values)
        assert variance == pytest.approx(1) or values == [0.0] * len(values)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8))
def test_leave_one_out_is_the_centred_reward_times_n_over_n_minus_one(rewards):
    n = len(rewards)
    expected = [value * n / (n - 1) for value in dr_grpo(rewards, ["p"] * n, range(n))]
    if max(rewards) - min(rewards) > 1e-6:
        assert rloo(rewards, ["p"] * n, range(n)) == pytest.approx(expected, abs=1e-9)


def test_whitening_by_hand_and_by_part():
    # Part a holds 1, 3, 3, 1: mean 2, deviation 1. Part b holds 5 twice: no spread.
    found = whiten([np.array([1.0, 3.0]), np.array([5.0, 5.0]), np.array([3.0, 1.0])], ["a", "b", "a"])
    assert [values.tolist() for values in found] == [[-1, 1], [0, 0], [1, -1]]


# --- along tokens


def test_advantages_along_tokens_by_hand():
    # Discount 1/2, lambda 1/2, one turn. delta_1 = 4 - 1 = 3; delta_0 = 1 + 1/2 * 1 - 2 = -1/2; A_0 = -1/2 + 1/4 * 3 = 1/4.
    found = token_advantages(
        np.array([1.0, 4.0]), np.array([2.0, 1.0]), np.array([False, True]), discount=0.5, trace=0.5, turn_discount=1.0
    )
    assert found.tolist() == [0.25, 3.0]


TOKENS = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=6)


@given(st.lists(TOKENS, min_size=1, max_size=4), st.floats(0, 1), st.floats(0.1, 1))
def test_turn_discount_zero_is_estimation_of_every_turn_alone(turns, trace, discount):
    def alone(turn: list[tuple[float, float]]) -> list[float]:
        """The definition: the sum over l of (discount * lambda)^l * delta_{t+l}."""
        rewards, values = zip(*turn, strict=True)
        deltas = [
            reward + discount * following - value
            for reward, value, following in zip(rewards, values, [*values[1:], 0.0], strict=True)
        ]
        return [sum((discount * trace) ** ahead * delta for ahead, delta in enumerate(deltas[t:])) for t in range(len(deltas))]

    rewards, values = (np.array(column) for column in zip(*(token for turn in turns for token in turn), strict=True))
    ends = np.array([index == len(turn) - 1 for turn in turns for index in range(len(turn))])
    found = token_advantages(rewards, values, ends, discount=discount, trace=trace, turn_discount=0.0)
    assert found.tolist() == pytest.approx([value for turn in turns for value in alone(turn)], abs=1e-9)


def test_what_the_user_said_between_two_turns_does_not_dilute_the_advantage():
    settings = CreditConfig(advantage="gae")
    critic = CriticConfig(discount=0.9, trace=0.8)
    spoken, silent = chain("a", [A, I, R]), chain("b", [A, R])
    spoken.turns[1].token_ids = [1] * 50
    values = [np.array([0.1, 0.2, 0.3, 0.4])]
    found = [
        assign_credit(settings, critic, [trajectory], [rewards], values=values)[0][0]
        for trajectory, rewards in ((spoken, [0.0, 0.0, 1.0]), (silent, [0.0, 1.0]))
    ]
    assert found[0].tolist() == found[1].tolist() and len(found[0]) == 4


def test_without_values_the_token_advantage_is_what_is_still_to_come_and_reinforce_plus_plus_normalises_it():
    settings = CreditConfig(advantage="reinforce++")
    penalties = [np.array([0.1, 0.2]), np.zeros(2)]
    advantages, returns = assign_credit(settings, CRITIC, [chain("a", [A]), chain("b", [A])], [[1.0], [0.0]], penalties)
    assert [values.tolist() for values in returns] == [pytest.approx([0.7, 0.8]), [0.0, 0.0]]  # 1 - 0.2 - 0.1, 1 - 0.2
    tokens = np.concatenate(advantages)
    assert tokens.mean() == pytest.approx(0) and tokens.std() == pytest.approx(1)


def test_the_critics_targets_are_advantage_plus_value():
    settings = CreditConfig(advantage="gae")
    advantages, returns = assign_credit(settings, CRITIC, [chain("a", [A])], [[1.0]], values=[np.array([0.25, 0.5])])
    # Discount and trace 1: the return of every token is the reward to come, whatever the critic said.
    assert returns[0].tolist() == [1.0, 1.0] and advantages[0].tolist() == [0.75, 0.5]


@pytest.mark.parametrize(("advantage", "first"), [("gae", 0.5 * 0.5), ("reinforce++", 1.0)])
def test_the_critics_discount_and_trace_are_those_of_gae_alone(advantage, first):
    critic = CriticConfig(discount=0.5, trace=0.5)
    settings = CreditConfig(advantage=advantage)
    _, returns = assign_credit(settings, critic, [chain("a", [A])], [[1.0]])
    assert returns[0].tolist() == [first, 1.0]


@pytest.mark.parametrize("advantage", ["grpo", "reinforce++", "gae"])
def test_a_trajectory_in_which_nothing_was_sampled_has_no_advantages(advantage):
    settings = CreditConfig(advantage=advantage, normalise="role")
    for others in ([], [chain("b", [A]), chain("c", [A])]):
        rewards = [[0.0], [1.0], [0.0]][: 1 + len(others)]
        advantages, returns = assign_credit(settings, CRITIC, [chain("a", [I]), *others], rewards)
        assert [len(values) for values in advantages] == [len(values) for values in returns] == [0, 2, 2][: 1 + len(others)]


# --- credit over turns


def test_turn_returns_by_hand():
    trajectory = chain("a", [A, V, I, R])
    assert turn_returns(trajectory, [1.0, 2.0, 0.0, 4.0], 1.0) == [7.0, 6.0, 0.0, 4.0]
    assert turn_returns(trajectory, [1.0, 2.0, 0.0, 4.0], 0.5) == [3.0, 4.0, 0.0, 4.0]  # 1 + 4/2, 2 + 4/2, 4
    assert turn_returns(trajectory, [1.0, 2.0, 0.0, 4.0], 0.0) == [1.0, 2.0, 0.0, 4.0]


def outcome_credit(rewards: list[list[float]], **settings) -> list[list[float]]:
    trajectories = [chain(str(number), [A, V, R]) for number in range(len(rewards))]
    advantages, _ = assign_credit(CreditConfig(**settings), CRITIC, trajectories, rewards)
    return [values.tolist() for values in advantages]


def test_an_outcome_with_discount_one_gives_every_token_the_advantage_of_its_trajectory():
    found = outcome_credit([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], advantage="grpo")
    assert found == [[1.0] * 6, [-1.0] * 6]


ESTIMATES = st.sampled_from(["grpo", "dr_grpo", "rloo", "reinforce", "gae"])


@given(ESTIMATES, st.floats(-5, 5), st.floats(-5, 5))
def test_with_turn_discount_zero_the_second_turns_reward_leaves_the_first_turns_advantage_alone(name, reward, other):
    settings = {"advantage": name, "turn_discount": 0.0, "group": "prompt_kind_position"}
    rewards = [[1.0, 0.5, reward], [0.0, 0.5, 1.0]]
    first, second = (outcome_credit([[1.0, 0.5, value], rewards[1]], **settings) for value in (reward, other))
    for one, two in zip(first, second, strict=True):
        assert one[:4] == two[:4]  # attempt and verdict, two tokens each


def test_with_a_turn_discount_the_second_turns_reward_reaches_the_first():
    settings = {"advantage": "reinforce", "turn_discount": 0.8}
    assert outcome_credit([[0.0, 0.0, 1.0]], **settings)[0][:2] == pytest.approx([0.64, 0.64])


def test_turns_are_compared_with_the_same_kind_and_position_only():
    # Attempts 1 and 0 (mean 1/2), verdicts 0 and 0, revisions 3 and 1 (mean 2).
    found = outcome_credit(
        [[1.0, 0.0, 3.0], [0.0, 0.0, 1.0]], advantage="dr_grpo", turn_discount=0.0, group="prompt_kind_position"
    )
    assert found == [[0.5, 0.5, 0, 0, 1, 1], [-0.5, -0.5, 0, 0, -1, -1]]
    keys = by_prompt_kind_position([chain("a", [A, V, R, V, R])], [[0.0] * 5])
    assert keys == [[("p", A, 1), ("p", V, 1), ("p", R, 1), ("p", V, 2), ("p", R, 2)]]


def test_the_history_baseline_compares_turns_after_the_same_rewards_and_falls_back_where_they_are_few():
    trajectories = [chain(str(number), [A, V], prompt=str(number)) for number in range(LEAST_HISTORY + 1)]
    rewards = [[1.0, 1.0]] * LEAST_HISTORY + [[-1.0, 1.0]]
    keys = by_history(trajectories, rewards)
    assert keys[0] == [("solver", ()), ("verifier", (1.0,))]
    assert keys[-1] == [("solver", ()), ("verifier",)]  # one verdict after a wrong attempt: too few
    assert by_history(trajectories[1:-1], rewards[1:-1])[0] == [("solver",), ("verifier",)]  # one less than enough


def test_what_the_user_said_is_in_no_history():
    trajectories = [chain(str(number), [A, I, R]) for number in range(LEAST_HISTORY)]
    assert by_history(trajectories, [[1.0, 0.0, 1.0]] * LEAST_HISTORY)[0][2] == ("solver", (1.0,))


@given(st.floats(0.1, 50), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=6))
def test_role_normalisation_hides_the_scale_of_the_verifiers_rewards_from_the_solver(scale, pairs):
    settings = {"advantage": "reinforce", "turn_discount": 0.0, "normalise": "role"}
    plain, scaled = (
        outcome_credit([[float(solver), factor * verifier, 0.0] for solver, verifier in pairs], **settings)
        for factor in (1.0, scale)
    )
    for one, two in zip(plain, scaled, strict=True):
        assert one[:2] == two[:2] and one[4:] == two[4:]
        assert one[2:4] == pytest.approx(two[2:4], abs=1e-6)


def test_reinforce_plus_plus_normalises_over_the_batch_unless_by_role():
    # Returns: attempts 5 and 1, verdicts 1 and 0 (turns apart). By role each pair is +-1.
    settings = {"advantage": "reinforce++", "turn_discount": 0.0}
    rewards, kinds = [[5.0, 1.0], [1.0, 0.0]], [chain(name, [A, V], tokens=1) for name in "ab"]
    by_role, by_batch = (
        [values.tolist() for values in assign_credit(CreditConfig(**settings, **how), CRITIC, kinds, rewards)[0]]
        for how in ({"normalise": "role"}, {})
    )
    assert by_role == [[1.0, 1.0], [-1.0, -1.0]]
    # Mean 7/4, variance (25 + 1 + 1) / 4 - 49/16 = 59/16.
    assert by_batch[0] == pytest.approx([13 / sqrt(59), -3 / sqrt(59)])


def test_penalties_lower_the_return_of_their_own_turn():
    settings = CreditConfig(advantage="reinforce", turn_discount=0.0)
    penalties = [np.array([0.1, 0.2, 0.0, 0.5])]
    advantages, _ = assign_credit(settings, CRITIC, [chain("a", [A, R])], [[1.0, 1.0]], penalties)
    assert advantages[0].tolist() == pytest.approx([0.7, 0.7, 0.5, 0.5])


def test_what_was_given_to_the_policy_has_neither_reward_nor_advantage():
    trajectory = chain("a", [A, V])
    trajectory.turns[0].logprobs = []
    advantages, _ = assign_credit(CreditConfig(advantage="reinforce"), CRITIC, [trajectory], [[5.0, 1.0]])
    assert advantages[0].tolist() == [1.0, 1.0]


def test_the_weight_of_the_kl_is_looked_up_by_position_then_kind():
    trajectory = chain("a", [A, V, I, R, V])
    table = {"attempt/1": 0.1, "verdict": 0.0, "verdict/2": 0.3}
    assert kl_weights(trajectory, 0.01, table).tolist() == [0.1, 0.1, 0.0, 0.0, 0.01, 0.01, 0.3, 0.3]


def test_turns_of_the_batch_are_compared_with_the_same_kind_and_position_whatever_their_prompt():
    # Attempts 4 and 0 of two prompts (mean 2), revisions 1 and 5 (mean 3).
    trajectories = [chain(name, [A, R], prompt=name, tokens=1) for name in "ab"]
    settings = CreditConfig(advantage="dr_grpo", turn_discount=0.0, group="batch")
    advantages, _ = assign_credit(settings, CRITIC, trajectories, [[4.0, 1.0], [0.0, 5.0]])
    assert [values.tolist() for values in advantages] == [[2.0, -2.0], [-2.0, 2.0]]
