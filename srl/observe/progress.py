"""What a person sees while a run works."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def say(text: str) -> None:
    """One line that does not tear a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left; in a log file it is a line now and then instead of a torn bar."""
    interval = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(
        total=total, unit=f" {unit}", mininterval=interval, maxinterval=interval, leave=False, dynamic_ncols=True
    ) as display:
        yield display.update
