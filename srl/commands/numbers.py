"""Numbers and lists among a command's options, for argparse: what is out of bounds is refused with the option's name."""

import argparse
import math
from collections.abc import Callable, Collection
from typing import Any

from srl.config import Config, ConfigError


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    return read(kind, lambda value: value >= least, f"of at least {least:g}")


def above(least: float) -> Callable[[str], float]:
    return read(float, lambda value: value > least, f"above {least:g}")


def several(kind: Callable[[str], Any], choices: Collection[Any] = ()) -> Callable[[str], list[Any]]:
    """Values with commas between them: an option that takes several words would take the settings after it too."""

    def values(text: str) -> list[Any]:
        try:
            found = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a list such as 0,1,2") from None
        if choices and (wrong := [value for value in found if value not in choices]):
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(map(str, choices))}")
        return found

    return values


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


def check_mean(tokens: float, config: Config) -> None:
    """Raises ConfigError for a mean length (--tokens) that the limit of a trajectory leaves no room for."""
    if tokens >= config.rollout.max_response_tokens:
        most = config.rollout.max_response_tokens
        raise ConfigError(f"--tokens {tokens:g}: the mean of trajectories of at most rollout.max_response_tokens={most} is less")
