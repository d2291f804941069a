"""The loss of an outcome reward model: is this answer right? A pure function."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from srl.learner.batch import Batch
from srl.learner.losses import Sums


def outcome_loss(scores_t: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Sums]:
    """Binary cross-entropy in nats: -log sigmoid(score) of right answers and -log sigmoid(-score) of wrong ones.

    `batch.returns` is 1 for right and 0 for wrong; the metric `accuracy` counts scores on the right side of 0.
    """
    right_t = batch.returns
    loss = (batch.weights * binary_cross_entropy_with_logits(scores_t, right_t, reduction="none")).sum()
    hits = (batch.weights * ((scores_t.detach() > 0) == (right_t > 0.5))).sum()
    return loss, {"loss": loss.detach(), "accuracy": hits}
