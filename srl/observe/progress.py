"""What a person sees while a run works."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0
KNOWN = 0.05  # share that is done when the time left is first said
FIELDS: list[Callable[[], dict[str, Any]]] = []  # what JSON lines carry besides time, level and message; none: plain text


def lines_as(log: str, fields: Callable[[], dict[str, Any]]) -> None:
    """run.log: lines are JSON with these fields from now on, or text."""
    FIELDS[:] = [fields] if log == "json" else []


def say(text: str) -> None:
    """One line that does not tear a progress bar."""
    tqdm.write(json_line(text) if FIELDS else text, file=sys.stdout)
    sys.stdout.flush()


def json_line(text: str) -> str:
    level = "warning" if text.lstrip().startswith(("ALARM", "WARNING")) else "info"
    entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level}
    for fields in FIELDS:
        entry |= fields()
    return json.dumps({**entry, "message": text.strip()})


@contextmanager
def bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left on a terminal; elsewhere, such as in a job's log, a line now and then.

    The first call says how many were there before, as a rule 0; rate and time left are of the others.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {unit}", leave=False, dynamic_ncols=True) as display:
            yield Shown(display).update
    else:
        yield Told(total, unit).update


class Shown:
    """On a terminal."""

    def __init__(self, display: tqdm):
        self.display, self.begun = display, False

    def update(self, count: int) -> None:
        if self.begun:
            self.display.update(count)
            return
        self.begun = True
        self.display.initial = self.display.n = count
        self.display.refresh()


class Told:
    """By lines."""

    def __init__(self, total: int, unit: str):
        self.total, self.unit = total, unit
        self.there: int | None = None
        self.done, self.started, self.told = 0, 0.0, 0.0

    def update(self, count: int) -> None:
        now = time.monotonic()
        if self.there is None:
            self.there, self.done, self.started, self.told = count, count, now, now
            return
        self.done += count
        if now - self.told > SECONDS_BETWEEN_LINES and self.done > self.there:
            say(f"      {self.done}/{self.total} {self.unit}{self._left(now - self.started)}")
            self.told = now

    def _left(self, seconds: float) -> str:
        """The first results come after a start that later ones do not pay for: no guess from them."""
        new, asked = self.done - self.there, self.total - self.there
        return f", {duration(seconds / new * (asked - new))} left" if new >= asked * KNOWN else ""


def duration(seconds: float) -> str:
    """In the largest unit of which it has two."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
