"""Learning rate over steps."""

from math import cos, pi


def schedule(step: int, steps: int, warmup_steps: int, decay: bool) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then constant or cosine to zero at `steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if not decay:
        return 1.0
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
