"""Low-rank adapters (Hu et al., 2021): train W + (alpha / rank) B A with W frozen; what is published and saved is the sum."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

BELOW_BFLOAT16 = 2**16  # float32 numbers from one bfloat16 to the next


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
        """[out, in]: the one matrix that does the same; in bfloat16 on average, see `stochastic_bfloat16`."""
        weight = self.base.weight.data
        total = (self.lora_b.data.float() @ self.lora_a.data.float()).mul_(self.scale).add_(weight)
        return total if weight.dtype == torch.float32 else stochastic_bfloat16(total)


def stochastic_bfloat16(values: torch.Tensor) -> torch.Tensor:
    """Each float32 value as one of the two bfloat16 numbers around it, whose expectation it is; overwrites `values`.

    The nearest would be the weight before training again wherever an adapter adds less than half a step, which is nearly
    everywhere at usual learning rates. The noise is the same at every call for a shape and a device: a weight is published as the
    same number until it has changed, and one that is in bfloat16 stays what it is.
    """
    bits = values.view(torch.int32)
    noise = torch.empty_like(bits).random_(BELOW_BFLOAT16, generator=torch.Generator(values.device).manual_seed(0))
    # The bits of some NaN are so large that the sum would be a number.
    bits.add_(noise.mul_(values.isfinite())).bitwise_and_(-BELOW_BFLOAT16)
    return values.bfloat16()


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
