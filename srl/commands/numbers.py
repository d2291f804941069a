"""Numbers among a command's options, for argparse: one that is out of bounds is refused with the option's name."""

import argparse
import math
from collections.abc import Callable


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    return read(kind, lambda value: value >= least, f"of at least {least:g}")


def above(least: float) -> Callable[[str], float]:
    return read(float, lambda value: value > least, f"above {least:g}")


def read(kind: Callable[[str], float], fits: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise argparse.ArgumentTypeError(f"{text} is not {'a whole number' if kind is int else 'a number'} {wanted}")
        return value

    return number
