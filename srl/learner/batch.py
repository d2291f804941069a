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

    The weight of token t multiplies its loss -log p(t | tokens before t). `kl` is the weight of the KL to the reference; `values`
    and `returns` are the critic's, as it said them before the update and as it should learn them. Examples of one non-empty
    `unit` meet in one batch.
    """

    id: str
    token_ids: list[int]
    weights: list[float]
    advantages: list[float] = field(default_factory=list)
    old_logprobs: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    unit: str = ""


@dataclass(slots=True)
class Batch:
    """Sequences one after the other in a single row.

    `ids`, `trained` and `positions` are [1, token]; `lengths` are the sequences'. The rest has one entry per trained token in
    that order: `sequence` is the index of its sequence, `unit` the index of the first sequence of its unit, and every list of
    `Example` is the tensor of the same name.
    """

    ids: torch.Tensor
    trained: torch.Tensor
    weights: torch.Tensor
    advantages: torch.Tensor
    old_logprobs: torch.Tensor
    kl: torch.Tensor
    values: torch.Tensor
    returns: torch.Tensor
    reference_logprobs: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    sequence: torch.Tensor | None = None
    unit: torch.Tensor | None = None
    lengths: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        for item in fields(self):
            if isinstance(tensor := getattr(self, item.name), torch.Tensor):
                setattr(self, item.name, tensor.to(device, non_blocking=True))
        return self


# The lists of an example that become tensors with one entry per trained token.
PER_TOKEN = [item.name for item in fields(Example) if item.type == list[float]]


def policy_example(
    trajectory: Trajectory,
    advantages: Sequence[float] | float,
    *,
    weight: float = 1.0,
    unit: str = "",
    **columns: Sequence[float],
) -> Example:
    """Every token the policy sampled, with that weight; what was said to it has weight 0.

    `advantages` and the further `columns` have one value per sampled token, in order; a single advantage is that of all.
    Raises ValueError for a column of another length.
    """
    count = trajectory.sampled_tokens()
    written = {
        "weights": [weight] * count,
        "advantages": [advantages] * count if isinstance(advantages, float) else advantages,
        "old_logprobs": [value for turn in trajectory.turns for value in turn.logprobs],
        **columns,
    }
    if wrong := [name for name, values in written.items() if len(values) != count]:
        raise ValueError(f"trajectory {trajectory.id}: {wrong} do not have one value for each of {count} sampled tokens")
    return Example(
        trajectory.id,
        trajectory.token_ids(),
        unit=unit,
        **{name: at_sampled_tokens(trajectory, values) for name, values in written.items()},
    )


def at_sampled_tokens(trajectory: Trajectory, values: Sequence[float]) -> list[float]:
    """One value per token of the trajectory, prompt included: those given at the sampled tokens, 0 elsewhere."""
    spread, rest = [0.0] * len(trajectory.prompt_token_ids), iter(values)
    for turn in trajectory.turns:
        spread += [float(next(rest)) if turn.sampled else 0.0 for _ in turn.token_ids]
    return spread


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
    first: dict[object, int] = {}
    unit = torch.tensor([first.setdefault(example.unit or index, index) for index, example in enumerate(examples)] or [0])
    return Batch(
        ids=ids[None],
        trained=trained[None],
        positions=positions(lengths),
        sequence=sequence[trained],
        unit=unit[sequence[trained]],
        lengths=lengths,
        **{name: column[trained] for name, column in columns.items()},
    )


def per_token(examples: Sequence[Example], name: str, tokens: int) -> torch.Tensor:
    """[tokens]: the examples' lists of that name one after the other; zeros for examples that have none."""
    values = [value for example in examples for value in getattr(example, name) or [0.0] * len(example.token_ids)]
    return torch.tensor(values) if values else torch.zeros(tokens)
