"""Losses as pure functions of per-token tensors, all of shape [trained tokens].

Each returns the *sum* over tokens, and sums of metrics; the caller divides by the number of tokens in the whole step, so
that micro-batches and data-parallel ranks add up to exactly one large batch.
"""

from collections.abc import Callable

import torch

from srl.learner.batch import Batch

Sums = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, Sums]]


def sft_loss(logprobs_t: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Sums]:
    """Equation 1: minus the weighted log-probability of the demonstrated tokens."""
    loss = -(batch.weights * logprobs_t).sum()
    return loss, {"loss": loss.detach()}


def k3(logprobs_t: torch.Tensor, reference_t: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - 1 - d with d = reference - policy; never negative."""
    difference_t = reference_t - logprobs_t
    return torch.expm1(difference_t) - difference_t


def policy_loss(
    logprobs_t: torch.Tensor, batch: Batch, *, clip_low: float, clip_high: float, kl: float
) -> tuple[torch.Tensor, Sums]:
    """PPO's clipped surrogate on the sampled tokens plus `kl` times the KL to the reference (section 3.2's objective)."""
    ratio_t = (logprobs_t - batch.old_logprobs).exp()
    clipped_t = ratio_t.clamp(1 - clip_low, 1 + clip_high)
    surrogate_t = torch.minimum(ratio_t * batch.advantages, clipped_t * batch.advantages)
    loss = -(batch.weights * surrogate_t).sum()
    sums = {
        "ratio": (batch.weights * ratio_t.detach()).sum(),
        "clipped": (batch.weights * (clipped_t * batch.advantages < ratio_t * batch.advantages)).sum(),
        "logprob_gap": (batch.weights * (logprobs_t.detach() - batch.old_logprobs).abs()).sum(),
    }
    if batch.reference_logprobs is not None:
        kl_t = k3(logprobs_t, batch.reference_logprobs)
        loss = loss + kl * (batch.weights * kl_t).sum()
        sums["kl"] = (batch.weights * kl_t.detach()).sum()
    return loss, {"loss": loss.detach(), **sums}
