"""tune: which temperature and threshold stage-1 sampling should have, by B-STaR's balance score."""

import argparse

from srl.commands.numbers import at_least
from srl.config import Config

TEMPERATURES = [0.5, 0.7, 0.9, 1.0, 1.1, 1.2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    temperature = at_least(0, float)
    add("--temperature", type=temperature, action="append", help=f"to try; may be repeated (default: {TEMPERATURES})")
    add("--problems", type=at_least(1), default=200, help="training problems to sample from (default: 200)")


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.tune import tune_sampling
    from srl.observe.progress import say

    best = tune_sampling(config, options.temperature or TEMPERATURES, options.problems, say)["scores"][0]
    kept = f"attempts kept of which at least {best['threshold']:.0%} of the verdicts say correct"
    say(f"best: stage1.temperature={best['temperature']:g}, {kept}")
