"""Policy gradient: clipped surrogates, estimates of the KL divergence, the critic's loss. Pure functions."""

from collections.abc import Callable
from typing import Literal

import torch

from srl.learner.batch import Batch
from srl.learner.losses import Sums


def k1(logprobs_t: torch.Tensor, reference_t: torch.Tensor) -> torch.Tensor:
    """log policy - log reference: unbiased, may be negative. As a loss its gradient is 0 on average: use it in the reward."""
    return logprobs_t - reference_t


def k2(logprobs_t: torch.Tensor, reference_t: torch.Tensor) -> torch.Tensor:
    """Half the squared log-ratio: biased, but as a loss its gradient is that of the KL divergence."""
    return 0.5 * (logprobs_t - reference_t) ** 2


def k3(logprobs_t: torch.Tensor, reference_t: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - 1 - d with d = reference - policy; never negative."""
    difference_t = reference_t - logprobs_t
    return torch.expm1(difference_t) - difference_t


KL_ESTIMATES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def policy_loss(
    logprobs_t: torch.Tensor,
    batch: Batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    ratio: Literal["token", "sequence"] = "token",
    kl_estimate: str = "k3",
    entropy: float = 0.0,
) -> tuple[torch.Tensor, Sums]:
    """PPO's clipped surrogate on the sampled tokens, plus `batch.kl` times the KL to the reference (section 3.2's objective).

    `dual_clip` > 1 bounds the loss of tokens with negative advantage by `dual_clip` times it (0: no bound). `ratio`
    "sequence" takes one ratio per sequence, the geometric mean of its tokens' (GSPO). `entropy` rewards entropy.
    """
    ratio_t = probability_ratio(logprobs_t, batch, ratio)
    clipped_t = ratio_t.clamp(1 - clip_low, 1 + clip_high)
    surrogate_t = torch.minimum(ratio_t * batch.advantages, clipped_t * batch.advantages)
    if dual_clip:
        floor_t = torch.maximum(surrogate_t, dual_clip * batch.advantages)
        surrogate_t = torch.where(batch.advantages < 0, floor_t, surrogate_t)
    loss = -(batch.weights * surrogate_t).sum()
    sums = {
        "ratio": (batch.weights * ratio_t.detach()).sum(),
        "clipped": (batch.weights * (clipped_t * batch.advantages < ratio_t * batch.advantages)).sum(),
        "logprob_gap": (batch.weights * (logprobs_t.detach() - batch.old_logprobs).abs()).sum(),
    }
    if entropy:
        loss = loss - entropy * (batch.weights * entropy_surrogate(logprobs_t, ratio_t)).sum()
    if batch.reference_logprobs is not None:
        kl_t = KL_ESTIMATES[kl_estimate](logprobs_t, batch.reference_logprobs)
        loss = loss + (batch.weights * batch.kl * kl_t).sum()
        sums["kl"] = (batch.weights * k3(logprobs_t.detach(), batch.reference_logprobs)).sum()
    return loss, {"loss": loss.detach(), **sums}


def probability_ratio(logprobs_t: torch.Tensor, batch: Batch, level: str) -> torch.Tensor:
    """Policy over sampling policy, per token, or the geometric mean of its sequence at each of its tokens."""
    log_ratio_t = logprobs_t - batch.old_logprobs
    if level == "sequence":
        means = sequence_sums(log_ratio_t, batch) / sequence_sums(torch.ones_like(log_ratio_t), batch).clamp(min=1)
        log_ratio_t = means[batch.sequence]
    return log_ratio_t.exp()


def entropy_surrogate(logprobs_t: torch.Tensor, ratio_t: torch.Tensor) -> torch.Tensor:
    """Its gradient, averaged over sampled tokens, is that of the entropy: -log p times the score function.

    Only the sampled token's log-probability is needed, so no distribution over the vocabulary is kept for it.
    """
    return -ratio_t.detach() * logprobs_t.detach() * logprobs_t


def sequence_sums(values_t: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[sequences with an index up to the largest trained one]: sums of per-token values."""
    count = int(batch.sequence.max()) + 1 if len(batch.sequence) else 0
    return values_t.new_zeros(count).index_add(0, batch.sequence, values_t)


def value_loss(values_t: torch.Tensor, batch: Batch, *, clip: float) -> tuple[torch.Tensor, Sums]:
    """PPO's critic: half the squared error to the returns, the larger of unclipped and clipped (to +-`clip` of the old value)."""
    clipped_t = batch.values + (values_t - batch.values).clamp(-clip, clip)
    error_t, clipped_error_t = (values_t - batch.returns) ** 2, (clipped_t - batch.returns) ** 2
    loss = 0.5 * (batch.weights * torch.maximum(error_t, clipped_error_t)).sum()
    sums = {
        "value": (batch.weights * values_t.detach()).sum(),
        "return": (batch.weights * batch.returns).sum(),
        "value_error": (batch.weights * error_t.detach()).sum(),
        "value_clipped": (batch.weights * (clipped_error_t > error_t)).sum(),
    }
    return loss, {"loss": loss.detach(), **sums}
