"""Preference losses over whole trajectories (multi-turn DPO and KTO). Pure functions.

`advantages` are +1 on what is preferred and -1 on what is not. The mask is the tokens': what the model did not write is not
in any sum, whatever the chat template. Weights only normalise: a pair's add up to 1, and for KTO a sequence's do.
"""

import torch
from torch.nn.functional import logsigmoid

from srl.learner.batch import Batch
from srl.learner.losses import Sums
from srl.learner.losses.policy import sequence_sums


def dpo_loss(
    logprobs_t: torch.Tensor, batch: Batch, *, eta: float, label_smoothing: float = 0.0, nll: float = 0.0
) -> tuple[torch.Tensor, Sums]:
    """Multi-turn DPO: -log sigmoid of eta times the difference of the two trajectories' log-ratios to the reference.

    `label_smoothing` is the share with which a pair counts the other way round (CREAM: 1 - consistency). `nll` weighs the
    winner's negative log-probability per token.
    """
    log_ratio_t = logprobs_t - batch.reference_logprobs
    margins = eta * unit_sums(batch.advantages * log_ratio_t, batch)
    loss = -((1 - label_smoothing) * logsigmoid(margins) + label_smoothing * logsigmoid(-margins)).sum()
    winner_t = (batch.advantages > 0).to(logprobs_t.dtype)
    # A pair's weights add up to 1, half of it on the winner: twice them average over its tokens.
    nll_sum = -2 * (batch.weights * winner_t * logprobs_t).sum()
    if nll:
        loss = loss + nll * nll_sum
    sums = {
        "margin": margins.detach().sum(),
        "preferred": (margins.detach() > 0).sum(),
        "winner_reward": eta * (winner_t * log_ratio_t.detach()).sum(),
        "loser_reward": eta * ((1 - winner_t) * log_ratio_t.detach()).sum(),
        "winner_nll": nll_sum.detach(),
    }
    return loss, {"loss": loss.detach(), **sums}


def kto_loss(logprobs_t: torch.Tensor, batch: Batch, *, eta: float, z0: float) -> tuple[torch.Tensor, Sums]:
    """Multi-turn KTO: sum of 1 - sigmoid(+-(u - z0)), u = eta times the trajectory's log-ratio to the reference.

    `z0` is eta times the estimate of KL(policy || reference) per trajectory, at least 0 and not differentiated.
    """
    rewards = eta * sequence_sums(logprobs_t - batch.reference_logprobs, batch)
    signs = sequence_sums(batch.advantages, batch).sign()
    # A sequence of which nothing is trained has sign 0.
    loss = ((signs != 0) * (1 - torch.sigmoid(signs * (rewards - z0)))).sum()
    sums = {"right_reward": (rewards.detach() * (signs > 0)).sum(), "wrong_reward": (rewards.detach() * (signs < 0)).sum()}
    return loss, {"loss": loss.detach(), **sums}


def unit_sums(values_t: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[pairs of this batch]: sums of per-token values over both trajectories of each pair."""
    _, pairs = batch.unit.unique(return_inverse=True)
    count = int(pairs.max()) + 1 if len(pairs) else 0
    return values_t.new_zeros(count).index_add(0, pairs, values_t)
