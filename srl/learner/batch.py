"""What the learner trains on: token ids with a weight, an advantage and the sampling policy's log-probability for each token."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from srl.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. All lists have the length of `token_ids`; entries where `weights` is 0 are never read.

    The weight of token t multiplies its loss -log p(t | tokens before t).
    """

    id: str
    token_ids: list[int]
    weights: list[float]
    advantages: list[float] = field(default_factory=list)
    old_logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Padded on the right: `ids` and `trained` are [sequence, token]; the rest has one entry per trained token, row by row."""

    ids: torch.Tensor
    trained: torch.Tensor
    weights: torch.Tensor
    advantages: torch.Tensor
    old_logprobs: torch.Tensor
    reference_logprobs: torch.Tensor | None = None


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


def micro_batches(lengths: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Indices of `lengths`, for each rank the same number of micro-batches of at most `budget` padded tokens.

    Sequences of similar length go together; a sequence longer than the budget goes alone. Some micro-batches may be empty:
    ranks that shard parameters must run the same number of forward passes.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        # Lengths fall, so the first sequence of a batch is its padded length.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    while len(batches) % ranks:
        batches.append([])
    return [batches[rank::ranks] for rank in range(ranks)]


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Examples to tensors; no examples give one padding token that nothing is trained on."""
    longest = max((len(example.token_ids) for example in examples), default=1)
    ids = torch.full((max(1, len(examples)), longest), pad_id, dtype=torch.long)
    weights, advantages, old = (torch.zeros(ids.shape) for _ in range(3))
    for row, example in enumerate(examples):
        count = len(example.token_ids)
        ids[row, :count] = torch.tensor(example.token_ids)
        weights[row, :count] = torch.tensor(example.weights)
        if example.advantages:
            advantages[row, :count] = torch.tensor(example.advantages)
            old[row, :count] = torch.tensor(example.old_logprobs)
    # The first token of a sequence has nothing before it and cannot be predicted.
    trained = weights > 0
    trained[:, 0] = False
    return Batch(ids, trained, weights[trained], advantages[trained], old[trained])
