"""Which policy of a run is kept: the best on validation, and when to stop looking. Pure."""

from dataclasses import dataclass, field


@dataclass
class Selection:
    """Final accuracy decides, equal ones by the larger delta (the paper's rule), equal again by the earlier step."""

    patience: int
    best_step: int | None = None
    best: tuple[float, float] = field(default=(float("-inf"), float("-inf")))
    without_better: int = 0

    def offer(self, step: int, final: float, delta: float) -> bool:
        """Whether this is the best so far."""
        if (final, delta) > self.best:
            self.best_step, self.best, self.without_better = step, (final, delta), 0
            return True
        self.without_better += 1
        return False

    @property
    def exhausted(self) -> bool:
        return bool(self.patience) and self.without_better >= self.patience
