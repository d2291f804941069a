"""Numbers for Prometheus through Ray, which serves them on every node's metrics port with the prefix `ray_`.

A metric is `srl_<role>_<name>` for what an actor counts and `srl_<phase>_<name>` for what the driver records, each with the
tags run, role, rank and kind, which tells apart the parts of one count. Counters get the suffix `_total` from Ray, which keeps
them; a gauge it drops after two export intervals (20 s) in which nobody set it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

TAGS = ("run", "role", "rank", "kind")


class Exporter:
    """The metrics of one process. Works, and does nothing, in a process without Ray."""

    def __init__(self, run: str, role: str, rank: int | str):
        self.tags = {"run": run, "role": role, "rank": str(rank), "kind": ""}
        self.gauges: dict[str, Gauge] = {}
        self.levels: dict[str, float] = {}
        self.counters: dict[str, Counter] = {}
        self.totals: dict[str, float] = {}
        self.alarms = 0

    def level(self, name: str, value: float) -> None:
        """What is now. Values that are no numbers are left out: Prometheus would keep them as points."""
        name = metric_name(name)
        if not math.isfinite(value):
            self.levels.pop(name, None)  # nor is the last number what is now
            return
        if name not in self.gauges:
            self.gauges[name] = Gauge(name, description=name.replace("_", " "), tag_keys=TAGS)
        self.levels[name] = value
        self.gauges[name].set(value, self.tags)

    def repeat_levels(self) -> None:
        """Set every gauge to its last value once more, for what is recorded less often than Ray drops gauges: once a step."""
        for name, value in list(self.levels.items()):  # another thread may add to them meanwhile
            self.gauges[name].set(value, self.tags)

    def count(self, name: str, total: float) -> None:
        """`total` since the process began, of `name` or of `name/kind`; only its increase is sent."""
        increase = total - self.totals.get(name, 0)
        if increase <= 0:
            return
        self.totals[name] = total
        name, _, kind = name.partition("/")
        name = metric_name(name)
        if name not in self.counters:
            self.counters[name] = Counter(name, description=name.replace("_", " "), tag_keys=TAGS)
        self.counters[name].inc(increase, {**self.tags, "kind": kind})

    def record(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """A record of the run's metrics.jsonl; alarms are counted."""
        if phase == "alarm":
            self.alarm()
            return
        self.level(f"{phase}_step", step)
        for name, value in values.items():
            if isinstance(value, int | float):
                self.level(f"{phase}_{name}", value)

    def alarm(self) -> None:
        self.alarms += 1
        self.count("alarms", self.alarms)


def metric_name(name: str) -> str:
    """Prometheus allows letters, digits and underscores only: `rl-validation/c2i` -> `srl_rl_validation_c2i`."""
    return "srl_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
