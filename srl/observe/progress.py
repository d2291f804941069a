"""What a person sees while a run works."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


def say(text: str) -> None:
    """One line that does not tear a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


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
            left = (now - started) / done * (total - done)
            say(f"      {done}/{total} {unit}, {left:.0f} s left")
            told = now

    yield update
