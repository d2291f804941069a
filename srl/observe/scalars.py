"""Numbers as TensorBoard's event files, a folder for each phase, so that one phase's steps can be taken back alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Scalars:
    def __init__(self, folder: Path):
        self.folder = folder
        self.writers: dict[str, Any] = {}
        self.first_steps: dict[str, int] = {}

    def add(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """The numbers among the values, as `phase/name`."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if numbers and phase not in self.writers:
            from torch.utils.tensorboard import SummaryWriter

            purge = self.first_steps.get(phase)
            self.writers[phase] = SummaryWriter(str(self.folder / phase), purge_step=purge, flush_secs=10)
        for name, value in numbers.items():
            self.writers[phase].add_scalar(f"{phase}/{name}", value, step)

    def forget(self, first_steps: Mapping[str, int]) -> None:
        """TensorBoard shows nothing of these phases from the given step on, until it is written again."""
        for phase in first_steps.keys() & self.writers.keys():
            self.writers.pop(phase).close()
        self.first_steps |= first_steps

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
