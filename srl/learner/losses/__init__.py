"""Losses as pure functions of per-token tensors, all of shape [trained tokens].

Each returns the *sum* over tokens, sequences or pairs, and sums of metrics; the caller divides by the weight of the whole
step, so that micro-batches and data-parallel ranks add up to exactly one large batch.
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
