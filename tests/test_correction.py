from dataclasses import replace
from math import exp, log

import pytest
import torch

from srl.learner.batch import Example, collate
from srl.learner.correction import corrected, policy_age, trained_positions
from srl.trajectory import Trajectory, Turn, TurnKind


def example(old: list[float], advantages: list[float] | None = None) -> Example:
    count = len(old)
    return Example("a", [1] * (count + 1), [0.0] + [1.0] * count, [0.0] + (advantages or [2.0] * count), [0.0, *old])


def test_weights_by_hand():
    # sampled 0.5, 0.2, 0.1; current 0.5, 0.1, 0.9: ratios 1, 0.5, 9, of which the last is cut to 2.
    found, metrics = corrected([example([log(0.5), log(0.2), log(0.1)])], {"a": [log(0.5), log(0.1), log(0.9)]}, cap=2.0)
    assert found[0].advantages[1:] == pytest.approx([2.0, 1.0, 4.0])
    assert found[0].old_logprobs[1:] == pytest.approx([log(0.5), log(0.1), log(0.9)])
    assert metrics["sampler_ratio"] == pytest.approx(10.5 / 3) and metrics["sampler_truncated"] == pytest.approx(1 / 3)
    assert metrics["sampler_gap"] == pytest.approx((log(2) + log(9)) / 3)
    assert metrics["sampler_gap_max"] == pytest.approx(log(9))


def test_tokens_of_the_trained_policy_itself_stay_as_they_are():
    before = example([-0.25, -1.5], [1.0, -3.0])
    found, metrics = corrected([before], {"a": [-0.25, -1.5]}, cap=2.0)
    assert found == [before]
    assert metrics == {
        "sampler_gap": 0.0, "sampler_gap_max": 0.0, "sampler_ratio": 1.0, "sampler_truncated": 0.0, "sampler_masked": 0.0,
    }  # fmt: skip


def test_a_token_without_a_finite_probability_is_left_out_and_counted():
    found, metrics = corrected([example([float("-inf"), -1.5])], {"a": [-2.0, -1.0]}, cap=2.0)
    assert found[0].weights == [0.0, 0.0, 1.0] and metrics["sampler_masked"] == 0.5
    assert metrics["sampler_gap"] == 0.5 and metrics["sampler_ratio"] == exp(0.5)  # of the one that is left
    assert torch.isfinite(collate(found, 0).old_logprobs).all()


def test_a_token_that_the_sampler_thought_impossible_counts_up_to_the_cap():
    found, metrics = corrected([example([-800.0])], {"a": [-1.0]}, cap=2.0)
    assert found[0].advantages == [0.0, 4.0] and metrics["sampler_truncated"] == 1 and metrics["sampler_gap"] == 799


def test_masks_leave_out_what_is_not_between_the_cap_and_one_over_it():
    # Ratios 1, 0.25, 9: with a cap of 4 the last is outside, 0.25 just inside.
    old, now = [log(0.5), log(0.4), log(0.1)], [log(0.5), log(0.1), log(0.9)]
    (found,), metrics = corrected([example(old)], {"a": now}, 4.0, "token_mask")
    assert found.weights == [0.0, 1.0, 1.0, 0.0] and found.advantages[1:3] == pytest.approx([2.0, 0.5])
    assert metrics["sampler_masked"] == pytest.approx(1 / 3) and metrics["sampler_truncated"] == 0
    assert metrics["sampler_gap_max"] == pytest.approx(log(9))  # also of those that are left out


def test_a_sequence_counts_by_the_geometric_mean_of_its_tokens():
    # Ratios 4 and 1: every token weighs 2.
    old, now = [log(0.2), log(0.5)], [log(0.8), log(0.5)]
    (found,), metrics = corrected([example(old)], {"a": now}, 3.0, "sequence_truncate")
    assert found.advantages[1:] == pytest.approx([4.0, 4.0]) and metrics["sampler_ratio"] == pytest.approx(2)
    assert found.old_logprobs[1:] == now
    (found,), metrics = corrected([example(old)], {"a": now}, 1.5, "sequence_truncate")
    assert found.advantages[1:] == pytest.approx([3.0, 3.0]) and metrics["sampler_truncated"] == 1


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_a_sequence_outside_the_mask_is_left_out_whole_and_the_others_stay(shift: float):
    apart, near = example([-3.0, -3.0]), replace(example([-1.0]), id="b")
    found, metrics = corrected([apart, near], {"a": [-3.0 + shift] * 2, "b": [-1.0]}, exp(1.9), "sequence_mask")
    assert found == [near] and metrics["sampler_masked"] == pytest.approx(2 / 3)
    found, _ = corrected([apart, near], {"a": [-3.0 + shift] * 2, "b": [-1.0]}, exp(2.1), "sequence_mask")
    assert [one.id for one in found] == ["a", "b"]


def test_a_token_without_a_finite_probability_does_not_count_in_its_sequence():
    (found,), metrics = corrected([example([float("-inf"), log(0.2)])], {"a": [-2.0, log(0.4)]}, 3.0, "sequence_truncate")
    assert found.weights == [0.0, 0.0, 1.0] and found.advantages[2] == pytest.approx(4.0)
    assert metrics["sampler_ratio"] == pytest.approx(2) and metrics["sampler_masked"] == 0.5


def test_of_no_tokens_every_metric_is_zero():
    assert corrected([], {}, cap=2.0) == ([], dict.fromkeys(corrected([example([-1.0])], {"a": [-1.0]}, cap=2.0)[1], 0.0))
    assert policy_age([], {}) == {"policy_age": 0.0, "policy_age_max": 0.0}


def test_on_average_the_weights_turn_the_samplers_expectation_into_the_policys():
    # E_sampled[w A] = E_current[A] without truncation: 0.5 * (0.8 / 0.5) * 3 + 0.5 * (0.2 / 0.5) * -1 = 2.2
    found, _ = corrected([example([log(0.5), log(0.5)], [3.0, -1.0])], {"a": [log(0.8), log(0.2)]}, cap=exp(9))
    assert 0.5 * sum(found[0].advantages) == pytest.approx(0.8 * 3 - 0.2)


def test_the_positions_are_those_that_collate_trains():
    one = Example("a", [1, 2, 3, 4], [1.0, 0.0, 0.5, 1.0])
    assert trained_positions(one) == collate([one], 0).trained[0].nonzero().flatten().tolist() == [2, 3]


def test_age_is_counted_in_updates_and_tokens():
    def turn(version: int, count: int) -> Turn:
        return Turn(TurnKind.ATTEMPT, [1] * count, logprobs=[-1.0] * count, weight_version=version)

    said = Turn(TurnKind.INSTRUCTION, [1] * 50)
    trajectory = Trajectory("t", "p", "q", "1", [1], [turn(4, 3), said, turn(6, 1)])
    assert policy_age([trajectory], {4: 2, 5: 1, 6: 0}) == {"policy_age": 1.5, "policy_age_max": 2.0}
    assert policy_age([trajectory], {6: 0}) == {"policy_age": 0.75, "policy_age_max": 1.0}  # 4 is unknown
