"""Fine-tuning and clipped losses, schedule and batches. Numbers are worked by hand in the comments beside them."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srl.learner.batch import Batch, Example, collate, policy_example, weighted_example
from srl.learner.losses import sft_loss
from srl.learner.losses.policy import k3, policy_loss
from srl.learner.packing import pack
from srl.learner.schedule import adapted, schedule
from srl.trajectory import Trajectory, Turn, TurnKind

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741


def flat(weights: list[float], advantages: list[float] | None = None, old: list[float] | None = None, reference=None) -> Batch:
    """A batch of which every token is trained, one row; old log-probabilities are 0 unless given."""
    count = len(weights)
    return Batch(
        torch.zeros(1, count, dtype=torch.long),
        torch.ones(1, count, dtype=torch.bool),
        torch.tensor(weights),
        torch.tensor(advantages or [0.0] * count),
        torch.tensor(old or [0.0] * count),
        *(torch.zeros(count) for _ in ("kl", "values", "returns")),
        sequence=torch.zeros(count, dtype=torch.long),
        reference_logprobs=None if reference is None else torch.tensor(reference),
    )


def clipped(logprobs: torch.Tensor, batch: Batch, kl: float = 0.0):
    batch.kl = torch.full_like(batch.weights, kl)
    return policy_loss(logprobs, batch, clip_low=0.2, clip_high=0.2)


# --- losses


def test_sft_loss_is_the_weighted_sum_of_negative_log_probabilities():
    logprobs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    loss, sums = sft_loss(logprobs, flat([1.0, 0.5, 0.25]))
    loss.backward()
    assert loss.item() == sums["loss"].item() == 3.0  # 1 * 1 + 0.5 * 2 + 0.25 * 4
    assert logprobs.grad.tolist() == [-1.0, -0.5, -0.25]


def test_the_policy_that_sampled_has_ratio_exactly_one_and_kl_exactly_zero():
    values = [-0.3, -1.7, -0.0123]
    logprobs = torch.tensor(values, requires_grad=True)
    loss, sums = clipped(logprobs, flat([1.0] * 3, [2.0, -1.0, 0.5], values, values), kl=0.1)
    loss.backward()
    assert sums["ratio"].item() == 3.0 and sums["kl"].item() == 0.0
    assert sums["clipped"].item() == sums["logprob_gap"].item() == 0.0
    assert loss.item() == -1.5  # -(2 - 1 + 0.5)
    assert logprobs.grad.tolist() == [-2.0, 1.0, -0.5]  # REINFORCE: minus the advantage


def test_clipping_by_hand():
    # ratio   advantage   ratio * A   clipped * A   smaller   gradient of -smaller to log p
    # 1.5      1           1.5         1.2           1.2       0: clipped
    # 0.5      1           0.5         0.8           0.5      -0.5
    # 1.5     -1          -1.5        -1.2          -1.5       1.5
    # 0.5     -1          -0.5        -0.8          -0.8       0: clipped
    logprobs = torch.tensor([log(1.5), log(0.5), log(1.5), log(0.5)], requires_grad=True)
    loss, sums = clipped(logprobs, flat([1.0] * 4, [1.0, 1.0, -1.0, -1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.6)  # -(1.2 + 0.5 - 1.5 - 0.8)
    assert sums["clipped"].item() == 2 and sums["ratio"].item() == pytest.approx(4.0)
    assert sums["logprob_gap"].item() == pytest.approx(2 * log(1.5) + 2 * log(2))
    assert logprobs.grad.tolist() == pytest.approx([0.0, -0.5, 1.5, 0.0])


def test_lower_and_upper_clip_are_separate():
    logprobs = torch.tensor([log(1.5), log(0.5)])
    loss, _ = policy_loss(logprobs, flat([1.0, 1.0], [1.0, -1.0]), clip_low=0.4, clip_high=0.3)
    assert loss.item() == pytest.approx(-0.7)  # -(min(1.5, 1.3) + min(-0.5, -0.6))


def test_kl_by_hand():
    # policy 0.5, reference 0.25: d = log 0.5, k3 = 0.5 - 1 + log 2 = 0.1931; gradient to log p: 1 - 0.5
    logprobs = torch.tensor([log(0.5)], requires_grad=True)
    loss, sums = clipped(logprobs, flat([1.0], [0.0], [log(0.5)], [log(0.25)]), kl=0.1)
    loss.backward()
    assert sums["kl"].item() == pytest.approx(log(2) - 0.5)
    assert loss.item() == pytest.approx(0.1 * (log(2) - 0.5))
    assert logprobs.grad.item() == pytest.approx(0.05)


def test_the_estimate_of_kl_is_right_on_average():
    # Over the policy's own samples: KL((0.7, 0.3) || (0.4, 0.6)) = 0.7 log(7/4) + 0.3 log(1/2) = 0.1838.
    policy, reference = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    found = (policy * k3(policy.log(), reference.log())).sum().item()
    assert found == pytest.approx(0.7 * log(7 / 4) + 0.3 * log(1 / 2))


LOGPROBS = st.floats(-20, 0, width=32)


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=20))
def test_the_estimate_of_kl_is_never_negative(pairs):
    policy, reference = torch.tensor(pairs).T
    assert (k3(policy, reference) >= 0).all()


def test_without_a_reference_there_is_no_kl():
    loss, sums = clipped(torch.tensor([-1.0]), flat([1.0], [1.0], [-1.0]), kl=5.0)
    assert loss.item() == -1.0 and "kl" not in sums


@pytest.mark.parametrize("loss", [sft_loss, clipped])
def test_tokens_of_weight_zero_have_gradient_exactly_zero(loss):
    batch = collate([Example("a", [5, 6, 7, 8], [0.0, 1.0, 0.0, 1.0], [1.0] * 4, [-1.0] * 4)], pad_id=0)
    logprobs = torch.full((1, 4), -1.5, requires_grad=True)
    loss(logprobs[batch.trained], batch)[0].backward()
    assert (logprobs.grad != 0).tolist() == [[False, True, False, True]]


def test_an_empty_micro_batch_has_loss_zero_and_can_be_differentiated():
    batch = collate([], pad_id=9)
    logits = torch.zeros(batch.ids.shape, requires_grad=True)
    for loss in (sft_loss, clipped):
        value, sums = loss(logits[batch.trained], batch)
        value.backward()
        assert value.item() == 0.0 and not any(total.item() for total in sums.values())
    assert batch.ids.tolist() == [[9]] and logits.grad.tolist() == [[0.0]]


# id, weight, advantage, old log-probability
TOKENS = st.tuples(st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-2, 2), st.floats(-4, 0))
EXAMPLES = st.lists(st.lists(TOKENS, min_size=1, max_size=9), min_size=1, max_size=8).map(
    lambda rows: [Example(str(n), *map(list, zip(*row, strict=True))) for n, row in enumerate(rows)]
)


@given(EXAMPLES, st.integers(1, 24), st.integers(1, 3), st.sampled_from([sft_loss, clipped]))
def test_micro_batches_add_up_to_one_large_batch(examples, budget, ranks, loss):
    def total(groups: list[list[Example]]) -> tuple[torch.Tensor, torch.Tensor]:
        """A policy that knows how often each token occurs and nothing else."""
        scores = torch.linspace(-1, 1, 8, dtype=torch.float64, requires_grad=True)
        value = torch.zeros((), dtype=torch.float64)
        for group in groups:
            batch = collate(group, pad_id=0)
            value = value + loss(scores.log_softmax(0)[batch.ids][batch.trained], batch)[0]
        return value.detach(), torch.autograd.grad(value, scores)[0]

    parts = [batch for rank in pack([len(e.token_ids) for e in examples], budget, ranks) for batch in rank]
    whole, split = total([examples]), total([[examples[index] for index in batch] for batch in parts])
    torch.testing.assert_close(split, whole)


# --- batches


def test_collate_puts_sequences_one_after_the_other():
    batch = collate(
        [
            Example("a", [1, 2, 3], [0.0, 1.0, 0.5], [4.0, 5.0, 6.0], [-0.1, -0.2, -0.3]),
            Example("b", [7, 8], [0.0, 1.0], [9.0, 9.5]),
        ],
        pad_id=99,
    )
    assert batch.ids.tolist() == [[1, 2, 3, 7, 8]] and batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.trained.tolist() == [[False, True, True, False, True]] and batch.lengths == (3, 2)
    assert batch.weights.tolist() == [1.0, 0.5, 1.0] and batch.sequence.tolist() == [0, 0, 1]
    assert batch.advantages.tolist() == [5.0, 6.0, 9.5]
    assert batch.old_logprobs.tolist() == pytest.approx([-0.2, -0.3, 0.0])


def test_the_first_token_of_each_sequence_is_never_trained_for_nothing_predicts_it():
    batch = collate([Example("a", [1, 2], [1.0, 1.0]), Example("b", [3, 4], [1.0, 1.0])], pad_id=0)
    assert batch.trained.tolist() == [[False, True, False, True]] and batch.weights.tolist() == [1.0, 1.0]


def two_turn() -> Trajectory:
    """Wrong attempt, verdict, what the user said, right revision: the paper's D1."""
    return Trajectory(
        "t", "p", "", "", [1, 2],
        [
            Turn(A, [3, 4], logprobs=[-0.1, -0.2], loss_weight=0.0),
            Turn(V, [5], logprobs=[-0.3], loss_weight=1.0),
            Turn(I, [6, 7]),
            Turn(R, [8, 9], logprobs=[-0.4, -0.5], loss_weight=1.0),
        ],
    )  # fmt: skip


def test_fine_tuning_puts_no_weight_on_prompt_wrong_attempt_and_instruction():
    example = weighted_example(two_turn())
    assert example.token_ids == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    #                           prompt  attempt  verdict  said  revision
    assert example.weights == [0, 0, 0, 0, 1, 0, 0, 1, 1]


def test_reinforcement_trains_every_sampled_token_and_nothing_that_was_said():
    example = policy_example(two_turn(), 0.5)
    assert example.token_ids == two_turn().token_ids()
    assert example.weights == [0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert example.old_logprobs == [0, 0, -0.1, -0.2, -0.3, 0, 0, -0.4, -0.5]
    assert [a for a, weight in zip(example.advantages, example.weights, strict=True) if weight] == [0.5] * 5
    batch = collate([example], pad_id=0)
    assert batch.ids[batch.trained].tolist() == [3, 4, 5, 8, 9]


# --- schedule


def test_schedule_by_hand():
    # Two warm-up steps of three: 1/3, 2/3, then the peak. Cosine over the 8 steps left: half at step 2 + 4, zero at step 10.
    assert [schedule(step, 10, 2, decay=True) for step in (0, 1, 2, 6, 10)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5, 0.0])
    assert [schedule(step, 10, 2, decay=False) for step in (0, 1, 2, 9)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert schedule(0, 1, 0, decay=True) == schedule(0, 1, 0, decay=False) == 1.0


@given(st.integers(1, 200), st.integers(0, 50))
def test_the_learning_rate_is_never_zero_within_a_run_and_falls_after_warm_up(steps, warmup):
    rates = [schedule(step, steps, warmup, decay=True) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True) and rates[:warmup] == sorted(rates[:warmup])


def test_exponents_do_not_overflow_far_from_the_sampling_policy():
    assert torch.isfinite(clipped(torch.tensor([-0.1]), flat([1.0], [1.0], [-30.0]))[0])
    assert exp(29.9) > 1e12  # the ratio there: only the clip keeps the loss small


def test_the_weight_of_the_kl_moves_by_half_the_relative_error_and_by_a_tenth_at_most():
    found = [adapted(2.0, kl, 0.1) for kl in (0.0, 0.08, 0.09, 0.1, 0.11, 0.12, 5.0)]
    assert found == pytest.approx([1.8, 1.8, 1.9, 2.0, 2.1, 2.2, 2.2])
