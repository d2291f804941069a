"""The steps that stage 2 records, seen from outside as they come."""

import json
import time
from pathlib import Path
from typing import Any

TAIL = 1 << 17  # bytes of metrics.jsonl that hold the steps since the last look


class Steps:
    """Those of one run; a step that is done again after a kill is one more. Times are in monotonic seconds."""

    def __init__(self, run: Path):
        self.file = run / "metrics.jsonl"
        self.seen: set[tuple[int, float]] = set()
        self.times: list[tuple[float, int]] = []  # when a step was recorded, and which
        self.kills: list[dict[str, Any]] = []

    @property
    def highest(self) -> int:
        return max((step for _, step in self.times), default=-1)

    def killed(self, victim: str, **values: Any) -> None:
        """From now on the seconds count until the next step, and until one that had never been reached."""
        self.kills.append({"victim": victim, "at": time.monotonic(), "step": self.highest, **values})

    def look(self) -> int:
        """How many steps were recorded since the last look."""
        count = len(self.times)
        for record in tail(self.file):
            if (key := (record["step"], record["seconds"])) in self.seen:
                continue
            self.seen.add(key)
            now = time.monotonic()
            self.times.append((now, record["step"]))
            for kill in self.kills:
                kill.setdefault("next step after s", round(now - kill["at"], 1))
                if record["step"] > kill["step"]:
                    kill.setdefault("new step after s", round(now - kill["at"], 1))
        return len(self.times) - count


def tail(file: Path) -> list[dict[str, Any]]:
    """The last steps that stage 2 has recorded."""
    if not file.exists():
        return []
    with file.open("rb") as lines:
        begin = max(0, file.stat().st_size - TAIL)
        lines.seek(begin)
        text = lines.read().split(b"\n")[bool(begin) : -1]  # whole lines
    return [record for line in text if (record := json.loads(line))["phase"] == "rl"]
