"""What changes over steps: the learning rate, the weight of the KL."""

from math import cos, pi


def schedule(step: int, steps: int, warmup_steps: int, decay: bool) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then constant or cosine to zero at `steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if not decay:
        return 1.0
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def adapted(factor: float, kl: float, target: float) -> float:
    """The factor of the KL's weight after a step with that KL per token: at most 10 % up or down, towards the target.

    The proportional controller of Ziegler et al. 2019 with its error clipped to +-20 % and a horizon of two steps.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return factor * (1 + 0.5 * error)
