"""Policy, critic and preference losses against hand-worked numbers and against other implementations' formulas."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from srl.learner.batch import Batch, Example, collate, policy_example
from srl.learner.losses import sft_loss
from srl.learner.losses.outcome import outcome_loss
from srl.learner.losses.policy import entropy_surrogate, k1, k2, k3, policy_loss, value_loss
from srl.learner.losses.preference import dpo_loss, kto_loss
from srl.reward.consistency import kendall_tau, rank_consistency
from srl.trajectory import Trajectory, Turn, TurnKind

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741


def batch_of(rows: list[dict], reference: list[float] | None = None) -> Batch:
    """One sequence per row: a prompt token, then the tokens of the row's columns."""
    examples = []
    for number, row in enumerate(rows):
        columns = {name: [0.0, *values] for name, values in row.items() if isinstance(values, list)}
        count = max(map(len, columns.values()))
        columns = {"weights": [0.0] + [1.0] * (count - 1)} | columns
        examples.append(Example(str(number), [1] * count, unit=row.get("unit", ""), **columns))
    batch = collate(examples, pad_id=0)
    batch.reference_logprobs = None if reference is None else torch.tensor(reference)
    return batch


# --- policy


def test_dual_clip_bounds_the_loss_of_unlikely_good_riddance():
    # Ratio 10 with advantage -1: PPO's surrogate is -10; with dual clip 3 it is -3 and has no gradient.
    logprobs = torch.tensor([log(10.0), log(10.0)], requires_grad=True)
    loss, _ = policy_loss(logprobs, batch_of([{"advantages": [-1.0, 1.0]}]), dual_clip=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(3 - 1.2)
    assert logprobs.grad.tolist() == [0.0, 0.0]


def test_dual_clip_scales_with_the_advantage_and_leaves_good_tokens_alone():
    # Ratio 10: -10 * 2 is cut to -3 * 2; with advantage 1/2 the surrogate is 1.2 / 2, not 3 / 2.
    loss, _ = policy_loss(torch.tensor([log(10.0), log(10.0)]), batch_of([{"advantages": [-2.0, 0.5]}]), dual_clip=3.0)
    assert loss.item() == pytest.approx(6 - 0.6)


def test_metrics_of_the_policy_are_weighted_sums():
    # Weights 1/2, 1/4 and 1/4; ratios 2 (clipped), 1/2 (clipped, as the advantage is negative) and 1.1 (not clipped).
    rows = [{"weights": [0.5, 0.25, 0.25], "advantages": [3.0, -2.0, 1.0], "old_logprobs": [-2.0, -1.0, -1.0]}]
    _, sums = policy_loss(torch.tensor([log(2) - 2, log(0.5) - 1, log(1.1) - 1]), batch_of(rows))
    assert sums["ratio"].item() == pytest.approx(1.0 + 0.125 + 0.275) and sums["clipped"].item() == 0.75
    assert sums["logprob_gap"].item() == pytest.approx(0.5 * log(2) + 0.25 * log(2) + 0.25 * log(1.1))


def test_a_sequence_of_one_token_has_that_tokens_ratio():
    loss, _ = policy_loss(torch.tensor([log(1.1), log(0.9)]), batch_of([{"advantages": [1.0]}] * 2), ratio="sequence")
    assert loss.item() == pytest.approx(-(1.1 + 0.9))


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens():
    # Sequence one: ratios 2 and 1/2, mean 1. Sequence two: ratios 1.5 and 1.5.
    logprobs = torch.tensor([log(2.0), log(0.5), log(1.5), log(1.5)])
    batch = batch_of([{"advantages": [1.0, 1.0]}, {"advantages": [1.0, 1.0]}])
    loss, sums = policy_loss(logprobs, batch, clip_high=0.2, ratio="sequence")
    assert loss.item() == pytest.approx(-(1 + 1 + 1.2 + 1.2)) and sums["ratio"].item() == pytest.approx(5.0)


def test_the_kl_has_its_own_weight_at_every_token():
    # d = log 1/2 at both tokens; k3 = 1/2 - 1 + log 2.
    batch = batch_of([{"advantages": [0.0, 0.0], "kl": [0.1, 0.0]}], [log(0.25)] * 2)
    loss, sums = policy_loss(torch.full((2,), log(0.5)), batch)
    assert loss.item() == pytest.approx(0.1 * (log(2) - 0.5)) and sums["kl"].item() == pytest.approx(2 * (log(2) - 0.5))


def softmax_pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True), torch.tensor([0.2, 0.5, 0.3]).double().log()


def expected_gradient(surrogate) -> torch.Tensor:
    """Gradient of E_sampled[surrogate], the sampling distribution held fixed, by enumerating the vocabulary."""
    logits, _ = softmax_pair()
    logprobs = logits.log_softmax(0)
    return torch.autograd.grad((logprobs.detach().exp() * surrogate(logprobs)).sum(), logits)[0]


def true_kl_gradient() -> torch.Tensor:
    logits, reference = softmax_pair()
    logprobs = logits.log_softmax(0)
    return torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)[0]


def test_as_a_loss_k2_has_the_gradient_of_the_kl_and_k1_has_none():
    _, reference = softmax_pair()
    torch.testing.assert_close(expected_gradient(lambda p: k2(p, reference)), true_kl_gradient())
    torch.testing.assert_close(expected_gradient(lambda p: k1(p, reference)), torch.zeros(3).double())


def test_in_the_reward_k1_has_the_gradient_of_the_kl():
    _, reference = softmax_pair()
    torch.testing.assert_close(expected_gradient(lambda p: k1(p, reference).detach() * p), true_kl_gradient())


@pytest.mark.parametrize("estimate", [k1, k3])
def test_k1_and_k3_are_right_on_average(estimate):
    # KL((0.7, 0.3) || (0.4, 0.6)) = 0.7 log(7/4) + 0.3 log(1/2) = 0.1838.
    policy, reference = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    found = (policy * estimate(policy.log(), reference.log())).sum().item()
    assert found == pytest.approx(0.7 * log(7 / 4) + 0.3 * log(1 / 2))


def test_the_entropy_bonus_has_the_gradient_of_the_entropy():
    logits, _ = softmax_pair()
    logprobs = logits.log_softmax(0)
    truth = torch.autograd.grad(-(logprobs.exp() * logprobs).sum(), logits)[0]
    torch.testing.assert_close(expected_gradient(lambda p: entropy_surrogate(p, torch.ones(3))), truth)


def test_the_loss_takes_the_entropy_bonus_off_with_constant_ratio_and_weight():
    # Advantage 0, weight 2, ratio 1/2: the loss is 0.1 * 2 * 1/2 * log p * log p, and only the last factor has a gradient.
    logprobs = torch.tensor([log(0.25)], requires_grad=True)
    batch = batch_of([{"advantages": [0.0], "old_logprobs": [log(0.5)], "weights": [2.0]}])
    policy_loss(logprobs, batch, entropy=0.1)[0].backward()
    assert logprobs.grad.item() == pytest.approx(0.1 * 2 * 0.5 * log(0.25))


def grpo_of_trl(logps, old, ref, advantages, mask, *, beta, low, high, kind):
    """The per-token loss of TRL's GRPOTrainer and its three reductions, on padded tensors [sequence, token]."""
    coef_1 = torch.exp(logps - old)
    coef_2 = torch.clamp(coef_1, 1 - low, 1 + high)
    per_token = -torch.min(coef_1 * advantages.unsqueeze(1), coef_2 * advantages.unsqueeze(1))
    per_token = per_token + beta * (torch.exp(ref - logps) - (ref - logps) - 1)
    if kind == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1)).mean()
    return (per_token * mask).sum() / mask.sum()  # "bnpo", "dapo"


@given(st.integers(0, 2**31), st.sampled_from(["grpo", "dapo"]))
def test_grpo_is_that_of_trl_in_both_averages(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    lengths = [2, 5, 3]
    mask = torch.tensor([[1.0] * length + [0.0] * (5 - length) for length in lengths])
    old, ref, noise = (torch.randn(3, 5, generator=generator) for _ in range(3))
    advantages = torch.randn(3, generator=generator)
    logps = (old + 0.3 * noise).requires_grad_()
    theirs = grpo_of_trl(logps, old, ref, advantages, mask, beta=0.04, low=0.2, high=0.28, kind=kind)
    rows = []
    for row, length in enumerate(lengths):
        weight = 1 / length if kind == "grpo" else 1.0
        rows.append(
            {
                "weights": [weight] * length,
                "advantages": [float(advantages[row])] * length,
                "old_logprobs": old[row, :length].tolist(),
                "kl": [0.04] * length,
            }
        )
    batch = batch_of(rows)
    chosen = mask.bool()
    batch.reference_logprobs = ref[chosen]
    ours = policy_loss(logps[chosen], batch, clip_low=0.2, clip_high=0.28)[0] / batch.weights.sum()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, logps, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_score_without_bonus_and_with_one_turn_is_reinforce():
    from srl.config import CreditConfig, CriticConfig
    from srl.learner.credit import assign_credit
    from srl.reward.shaping import improvement, turn_outcome, turn_rewards
    from srl.trajectory import Outcome

    outcomes = (Outcome.CORRECT, Outcome.INCORRECT)
    group = [
        Trajectory(str(n), "p", "", "", [1], [Turn(A, [2, 3], logprobs=[-0.5, -1.0], outcome=outcome)])
        for n, outcome in enumerate(outcomes)
    ]
    rewards = [turn_rewards(trajectory, {turn_outcome: 1.0, improvement: 0.0}) for trajectory in group]
    settings = CreditConfig(advantage="reinforce", turn_discount=0.0, group="prompt_kind_position")
    advantages, _ = assign_credit(settings, CriticConfig(), group, rewards)
    batch = collate([policy_example(t, a) for t, a in zip(group, advantages, strict=True)], pad_id=0)
    logprobs = torch.tensor([-0.5, -1.0, -0.5, -1.0], requires_grad=True)
    policy_loss(logprobs, batch)[0].backward()
    # REINFORCE: minus reward times the gradient of log pi.
    assert logprobs.grad.tolist() == [-1.0, -1.0, 0.0, 0.0]


# --- critic


def test_value_loss_by_hand():
    # old value 0, clip 0.5, return 2. New value 1: unclipped (1 - 2)^2 = 1, clipped (0.5 - 2)^2 = 2.25, the larger counts.
    # New value 0.2: within the clip, (0.2 - 2)^2 = 3.24 both ways.
    values = torch.tensor([1.0, 0.2], requires_grad=True)
    loss, sums = value_loss(values, batch_of([{"values": [0.0, 0.0], "returns": [2.0, 2.0]}]), clip=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (2.25 + 3.24)) and sums["value_clipped"].item() == 1
    assert values.grad.tolist() == pytest.approx([0.0, -1.8])


def test_a_value_moves_from_the_old_one_by_the_clip_at_most_in_either_direction():
    # Old value 1, clip 1/2. New 0, return -1: clipped to 1/2, (1/2 + 1)^2 = 2.25 instead of 1. New 3, return 4: clipped to 3/2,
    # (3/2 - 4)^2 = 6.25 instead of 1. New 2, return 0: 4 is more than the clipped (3/2)^2. Weights 1/2, 1/4, 1/4.
    rows = [{"values": [1.0] * 3, "returns": [-1.0, 4.0, 0.0], "weights": [0.5, 0.25, 0.25]}]
    loss, sums = value_loss(torch.tensor([0.0, 3.0, 2.0]), batch_of(rows), clip=0.5)
    assert loss.item() == pytest.approx(0.5 * (0.5 * 2.25 + 0.25 * 6.25 + 0.25 * 4))
    expected = {"value": 1.25, "return": 0.5, "value_error": 1.75, "value_clipped": 0.75}
    assert {name: sums[name].item() for name in expected} == expected


# --- preference


def preference(winner: list[float], loser: list[float], unit: str) -> list[dict]:
    """Two sequences of one pair, log-ratios are the old log-probabilities' place holders."""
    return [
        {"weights": [0.5 / len(side)] * len(side), "advantages": [sign] * len(side), "unit": unit}
        for side, sign in ((winner, 1.0), (loser, -1.0))
    ]


def test_dpo_by_hand():
    # Winner's log-ratios add up to 2, loser's to -1: margin eta * 3 = 0.3, gradient to each token -+ eta * sigmoid(-0.3).
    batch = batch_of(preference([1.5, 0.5], [-1.0], "p"), [0.0, 0.0, 0.0])
    logprobs = torch.tensor([1.5, 0.5, -1.0], requires_grad=True)
    loss, sums = dpo_loss(logprobs, batch, eta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(log(1 + exp(-0.3))) and sums["margin"].item() == pytest.approx(0.3)
    assert sums["preferred"].item() == 1
    assert sums["winner_reward"].item() == pytest.approx(0.2) and sums["loser_reward"].item() == pytest.approx(-0.1)
    slope = 0.1 / (1 + exp(0.3))
    assert logprobs.grad.tolist() == pytest.approx([-slope, -slope, slope])
    assert batch.weights.sum().item() == pytest.approx(1.0)  # the denominator counts pairs


def dpo_of_trl(chosen, rejected, ref_chosen, ref_rejected, *, beta, label_smoothing):
    """TRL's sigmoid loss on summed log-probabilities [pair]."""
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    return (-logsigmoid(beta * logits) * (1 - label_smoothing) - logsigmoid(-beta * logits) * label_smoothing).mean()


PAIRS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@given(PAIRS, st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.4]))
def test_dpo_with_one_turn_is_that_of_trl(lengths, seed, smoothing):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(map(sum, lengths))
    logprobs, reference = (torch.randn(tokens, generator=generator).requires_grad_() for _ in range(2))
    sides = [side for pair in lengths for side in pair]
    sums = [torch.stack([part.sum() for part in values.split(sides)]) for values in (logprobs, reference)]
    theirs = dpo_of_trl(sums[0][::2], sums[0][1::2], sums[1][::2], sums[1][1::2], beta=0.3, label_smoothing=smoothing)
    rows = [row for n, (w, l) in enumerate(lengths) for row in preference([0.0] * w, [0.0] * l, f"p{n}")]  # noqa: E741
    batch = batch_of(rows)
    batch.reference_logprobs = reference.detach()
    ours = dpo_loss(logprobs, batch, eta=0.3, label_smoothing=smoothing)[0] / batch.weights.sum()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def two_turn(revision: list[int], name: str) -> Trajectory:
    spoken = [Turn(A, [3], logprobs=[-1.0]), Turn(V, [4], logprobs=[-1.0]), Turn(I, [5, 6])]
    return Trajectory(name, "p", "", "", [1, 2], [*spoken, Turn(R, revision, logprobs=[-1.0] * len(revision))])


def test_in_multi_turn_dpo_neither_the_prompt_nor_what_the_user_said_is_in_the_sums():
    pair = [
        policy_example(two_turn(revision, name), sign, weight=0.5 / (2 + len(revision)), unit="pair")
        for revision, name, sign in (([7, 8], "w", 1.0), ([9], "l", -1.0))
    ]
    batch = collate(pair, pad_id=0)
    assert batch.ids[batch.trained].tolist() == [3, 4, 7, 8, 3, 4, 9]
    everywhere = torch.zeros(batch.ids.shape, requires_grad=True)
    batch.reference_logprobs = torch.zeros(7)
    dpo_loss(everywhere[batch.trained], batch, eta=0.1)[0].backward()
    assert (everywhere.grad != 0).tolist() == batch.trained.tolist()


def test_what_both_sides_share_does_not_move_the_margin():
    batch = collate(
        [
            policy_example(two_turn([7], "w"), 1.0, weight=1 / 6, unit="pair"),
            policy_example(two_turn([9], "l"), -1.0, weight=1 / 6, unit="pair"),
        ],
        pad_id=0,
    )
    batch.reference_logprobs = torch.zeros(6)
    shared = dpo_loss(torch.tensor([5.0, -3.0, 1.0, 5.0, -3.0, 0.0]), batch, eta=0.1)[0]
    assert shared.item() == pytest.approx(log(1 + exp(-0.1)))


def test_the_nll_term_is_the_winners_loss_per_token():
    batch = batch_of(preference([0.0, 0.0], [0.0], "p"), [0.0] * 3)
    logprobs = torch.tensor([-1.0, -3.0, -9.0])
    with_nll, without = (dpo_loss(logprobs, batch, eta=0.1, nll=nll)[0].item() for nll in (0.5, 0.0))
    assert with_nll - without == pytest.approx(0.5 * 2.0)  # (1 + 3) / 2 tokens


def test_pairs_need_not_be_adjacent():
    rows = preference([1.0], [0.0], "p") + preference([2.0], [0.0], "q")
    logprobs, reference = torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.zeros(4)
    together, apart = batch_of(rows), batch_of([rows[0], rows[2], rows[1], rows[3]])
    together.reference_logprobs = apart.reference_logprobs = reference
    losses = dpo_loss(logprobs, together, eta=0.1)[0], dpo_loss(logprobs[[0, 2, 1, 3]], apart, eta=0.1)[0]
    assert losses[0].item() == pytest.approx(losses[1].item())


@given(st.floats(0, 1), st.floats(-3, 3))
def test_cream_is_dpo_with_label_smoothing_one_minus_consistency(consistency, difference):
    batch = batch_of(preference([0.0], [0.0], "p"), [0.0, 0.0])
    flipped = batch_of([*reversed(preference([0.0], [0.0], "p"))], [0.0, 0.0])
    logprobs = torch.tensor([difference, 0.0])
    ours = dpo_loss(logprobs, batch, eta=0.5, label_smoothing=1 - consistency)[0].item()
    forwards, backwards = (dpo_loss(logprobs, side, eta=0.5)[0].item() for side in (batch, flipped))
    assert ours == pytest.approx(consistency * forwards + (1 - consistency) * backwards, abs=1e-5)


def test_consistency_by_hand():
    # Rankings 3 > 2 > 1 and 3 > 1 > 2: of three pairs two agree, tau = 1/3, C = 2/3.
    assert kendall_tau([3, 2, 1], [3, 1, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([1, 1], [1, 2]) == 0 and kendall_tau([1], [1]) == 0
    assert rank_consistency([([3, 2, 1], [3, 1, 2]), ([1, 2], [1, 2])]) == pytest.approx((2 / 3 + 1) / 2)
    assert rank_consistency([]) == 1


def test_kto_by_hand():
    # Log-ratios 1 + 3 and -2: u = 0.1 * 4 = 0.4 for the right one, 0.1 * -2 = -0.2 for the wrong one; z0 = 0.1.
    batch = batch_of(
        [{"advantages": [1.0, 1.0], "weights": [0.5, 0.5]}, {"advantages": [-1.0], "weights": [1.0]}], [-2.0, -5.0, -1.0]
    )
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss, sums = kto_loss(logprobs, batch, eta=0.1, z0=0.1)
    loss.backward()
    right, wrong = 1 / (1 + exp(-0.3)), 1 / (1 + exp(-0.3))  # sigmoid(0.4 - 0.1), sigmoid(0.1 + 0.2)
    assert loss.item() == pytest.approx((1 - right) + (1 - wrong))
    assert logprobs.grad.tolist() == pytest.approx([-0.1 * right * (1 - right)] * 2 + [0.1 * wrong * (1 - wrong)])
    assert sums["right_reward"].item() == pytest.approx(0.4) and sums["wrong_reward"].item() == pytest.approx(-0.2)


def test_a_sequence_of_which_nothing_is_trained_has_no_kto_loss():
    rows = [{"advantages": [1.0], "weights": [0.0]}, {"advantages": [1.0], "weights": [1.0]}]
    loss, _ = kto_loss(torch.tensor([0.0]), batch_of(rows, [0.0]), eta=0.1, z0=0.0)
    assert loss.item() == pytest.approx(0.5)  # 1 - sigmoid(0), once


LOSSES = {
    "policy": lambda logprobs, batch: policy_loss(logprobs, batch, entropy=0.1),
    "sequence": lambda logprobs, batch: policy_loss(logprobs, batch, ratio="sequence"),
    "value": lambda logprobs, batch: value_loss(logprobs, batch, clip=0.2),
    "dpo": lambda logprobs, batch: dpo_loss(logprobs, batch, eta=0.1, nll=0.1),
    "kto": lambda logprobs, batch: kto_loss(logprobs, batch, eta=0.1, z0=0.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_of_weight_zero_have_gradient_exactly_zero(name):
    sides = [
        Example(side, [5, 6, 7, 8], [0.0, 0.5, 0.0, 0.5], [sign] * 4, [-1.0] * 4, [0.1] * 4, [0.0] * 4, [1.0] * 4, unit="pair")
        for side, sign in (("w", 1.0), ("l", -1.0))
    ]
    batch = collate(sides, pad_id=0)
    batch.reference_logprobs = torch.full((4,), -1.2)
    logprobs = torch.full((1, 8), -1.05, requires_grad=True)
    LOSSES[name](logprobs[batch.trained], batch)[0].backward()
    assert (logprobs.grad != 0).tolist() == batch.trained.tolist() == [[False, True, False, True] * 2]


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_micro_batch_has_loss_zero_and_can_be_differentiated(name):
    batch = collate([], pad_id=9)
    batch.reference_logprobs = torch.zeros(0)
    logits = torch.zeros(batch.ids.shape, requires_grad=True)
    value, sums = LOSSES[name](logits[batch.trained], batch)
    value.backward()
    assert value.item() == 0.0 and not any(float(total) for total in sums.values()) and logits.grad.tolist() == [[0.0]]


@pytest.mark.parametrize(("estimate", "kl"), [("k1", log(2)), ("k2", log(2) ** 2 / 2), ("k3", log(2) - 0.5)])
def test_the_kl_in_the_loss_is_by_the_estimate_asked_for_and_the_one_reported_is_k3(estimate, kl):
    # Policy 1/2, reference 1/4: the log-ratio is log 2. A token of weight 2 with 0.1 of KL.
    batch = batch_of([{"advantages": [0.0], "old_logprobs": [log(0.5)], "weights": [2.0], "kl": [0.1]}], [log(0.25)])
    loss, sums = policy_loss(torch.tensor([log(0.5)]), batch, kl_estimate=estimate)
    assert loss.item() == pytest.approx(2 * 0.1 * kl) and sums["kl"].item() == pytest.approx(2 * (log(2) - 0.5))


def test_pairs_that_the_policy_tells_apart_no_better_than_the_reference_are_not_preferred():
    batch = batch_of(preference([0.0], [0.0], "p") + preference([0.0], [0.0], "q"), [-1.0] * 4)
    assert dpo_loss(torch.tensor([-1.0, -1.0, -0.5, -1.0]), batch, eta=0.1)[1]["preferred"].item() == 1


@pytest.mark.parametrize("loss", [*LOSSES.values(), sft_loss, outcome_loss], ids=[*LOSSES, "sft", "outcome"])
def test_a_loss_reports_itself_and_nothing_that_keeps_the_gradients_of_a_micro_batch_in_memory(loss):
    sides = [
        Example(side, [5, 6, 7], [0.0, 0.5, 0.5], [sign] * 3, [-1.0] * 3, [0.1] * 3, [0.0] * 3, [1.0] * 3, unit="pair")
        for side, sign in (("w", 1.0), ("l", -1.0))
    ]
    batch = collate(sides, pad_id=0)
    batch.reference_logprobs = torch.full((4,), -1.2)
    value, sums = loss(torch.full((4,), -1.05, requires_grad=True), batch)
    assert value.requires_grad and sums["loss"].item() == value.item()
    assert [name for name, total in sums.items() if total.requires_grad] == []
