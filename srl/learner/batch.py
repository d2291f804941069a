"""What the learner trains on: token ids with a weight, an advantage and the sampling policy's log-probability for each token."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate

import torch

from srl.learner.packing import positions
from srl.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. All lists have the length of `token_ids`, or are empty; where `weights` is 0 the others are never read.

    The weight of token t multiplies its loss -log p(t | tokens before t). Examples of one non-empty `unit` meet in one batch.
    """

    id: str
    token_ids: list[int]
    weights: list[float]
    advantages: list[float] = field(default_factory=list)
    old_logprobs: list[float] = field(default_factory=list)
    unit: str = ""


@dataclass(slots=True)
class Batch:
    """Sequences one after the other in a single row.

    `ids`, `trained` and `positions` are [1, token]; `lengths` are the sequences'. The rest has one entry per trained token in
    that order: `sequence` is the index of its sequence, and every list of `Example` is the tensor of the same name.
    """

    ids: torch.Tensor
    trained: torch.Tensor
    weights: torch.Tensor
    advantages: torch.Tensor
    old_logprobs: torch.Tensor
    reference_logprobs: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    sequence: torch.Tensor | None = None
    lengths: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        for item in fields(self):
            if isinstance(tensor := getattr(self, item.name), torch.Tensor):
                setattr(self, item.name, tensor.to(device, non_blocking=True))
        return self


# The lists of an example that become tensors with one entry per trained token.
PER_TOKEN = [item.name for item in fields(Example) if item.type == list[float]]


def policy_example(trajectory: Trajectory, advantage: float) -> Example:
    """Every token the policy sampled, with weight 1 and the advantage of its trajectory; what was said to it has weight 0."""
    ids = list(trajectory.prompt_token_ids)
    weights, advantages, old = [0.0] * len(ids), [0.0] * len(ids), [0.0] * len(ids)
    for turn in trajectory.turns:
        count = len(turn.token_ids)
        ids += turn.token_ids
        weights += [1.0 if turn.sampled else 0.0] * count
        advantages += [advantage] * count
        old += turn.logprobs if turn.sampled else [0.0] * count
    return Example(trajectory.id, ids, weights, advantages, old)


def weighted_example(trajectory: Trajectory) -> Example:
    """Tokens weighted by their turn's `loss_weight` (equation 1)."""
    ids = list(trajectory.prompt_token_ids)
    weights = [0.0] * len(ids)
    for turn in trajectory.turns:
        ids += turn.token_ids
        weights += [turn.loss_weight] * len(turn.token_ids)
    return Example(trajectory.id, ids, weights)


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Examples to one packed row; no examples give one padding token that nothing is trained on."""
    lengths = tuple(len(example.token_ids) for example in examples) or (1,)
    ids = torch.tensor([token for example in examples for token in example.token_ids] or [pad_id])
    columns = {name: per_token(examples, name, len(ids)) for name in PER_TOKEN}
    trained = columns["weights"] > 0
    # The first token of a sequence has nothing before it and cannot be predicted.
    trained[torch.tensor([0, *accumulate(lengths[:-1])])] = False
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Batch(
        ids=ids[None],
        trained=trained[None],
        positions=positions(lengths),
        sequence=sequence[trained],
        lengths=lengths,
        **{name: column[trained] for name, column in columns.items()},
    )


def per_token(examples: Sequence[Example], name: str, tokens: int) -> torch.Tensor:
    """[tokens]: the examples' lists of that name one after the other; zeros for examples that have none."""
    values = [value for example in examples for value in getattr(example, name) or [0.0] * len(example.token_ids)]
    return torch.tensor(values) if values else torch.zeros(tokens)
