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
    """A progress bar with rate and time left on a terminal; elsewhere, such as in a job's log, a line now and then."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {unit}", leave=False, dynamic_ncols=True) as display:
            yield display.update
        return
    done, started = 0, time.monotonic()
    told = started

    def update(count: int) -> None:
        nonlocal done, told
        done += count
        now = time.monotonic()
        if now - told > SECONDS_BETWEEN_LINES and done:
            # The first results come after a start that later ones do not pay for: no guess from them.
            left = f", {(now - started) / done * (total - done):.0f} s left" if done >= total * KNOWN else ""
            say(f"      {done}/{total} {unit}{left}")
            told = now

    yield update
