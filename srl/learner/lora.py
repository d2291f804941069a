"""Low-rank adapters (Hu et al., 2021): train W + (alpha / rank) B A with W frozen; what is published and saved is the sum."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it. B starts at zero, so that at first nothing changes."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale, self.on = base.requires_grad_(False), alpha / rank, True
        kind = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, **kind))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, **kind))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.base(inputs)
        if self.on:
            outputs = outputs + self.scale * (inputs @ self.lora_a.T) @ self.lora_b.T
        return outputs

    def merged(self) -> torch.Tensor:
        """[out, in]: the one matrix that does the same."""
        return self.base.weight.data + self.scale * (self.lora_b.data @ self.lora_a.data)


def add_adapters(model: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze the model and put an adapter beside every linear layer whose last name is in `targets`.

    Raises ValueError when there is none, and for a layer that shares its weight with another (a tied output layer): the sum would
    have to be two matrices.
    """
    model.requires_grad_(False)
    found = [(name, layer) for name, layer in model.named_modules() if name.rpartition(".")[2] in targets]
    found = [(name, layer) for name, layer in found if isinstance(layer, nn.Linear)]
    if not found:
        raise ValueError(f"learner.lora_targets={list(targets)}: the model has no linear layer of these names")
    owners = Counter(id(layer.weight) for layer in model.modules() if isinstance(getattr(layer, "weight", None), nn.Parameter))
    if shared := [name for name, layer in found if owners[id(layer.weight)] > 1]:
        raise ValueError(f"learner.lora_targets={list(targets)}: {', '.join(shared)} shares its weight with another layer")
    for name, layer in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoraLinear(layer, rank, alpha))


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The model as it was before any training: the reference that needs no copy."""
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        layer.on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.on = True


def published(module: nn.Module) -> Iterator[tuple[str, list[nn.Parameter], Callable[[], torch.Tensor]]]:
    """(name, parameters, tensor) of every weight as a model without adapters has it, shared ones once.

    The tensor is made when it is called, and only while the parameters are whole.
    """
    merged = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}
    for name, parameter in module.named_parameters():
        layer, _, last = name.rpartition(".")
        outer, _, inner = layer.rpartition(".")
        if layer in merged and last in ("lora_a", "lora_b"):
            continue
        if inner == "base" and outer in merged:
            if last == "weight":
                adapted = merged[outer]
                yield f"{outer}.weight", [parameter, adapted.lora_a, adapted.lora_b], adapted.merged
                continue
            name = f"{outer}.{last}"
        yield name, [parameter], lambda parameter=parameter: parameter.data
