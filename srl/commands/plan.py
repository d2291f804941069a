"""plan: placement, memory and time of an RL step on so many GPUs, on paper."""

import argparse

from srl.commands.numbers import above, at_least, check_mean
from srl.config import Config, ConfigError

MACHINES = ("h100", "h200", "a100", "cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=at_least(1), default=8, metavar="N", help="how many (default 8)")
    parser.add_argument("--gpu", choices=MACHINES, default="h100", help="which (default h100); cpu stands for two cores")
    parser.add_argument(
        "--tokens",
        type=above(0),
        metavar="N",
        help="mean sampled tokens of a trajectory (default: half of rollout.max_response_tokens)",
    )
    parser.add_argument("--prompt", type=above(0), default=150, metavar="N", help="mean tokens of a prompt (default 150)")


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.plan import placement_report

    tokens = options.tokens or config.rollout.max_response_tokens / 2
    check_mean(tokens, config)
    if options.prompt + tokens > config.model.max_length:
        raise ConfigError(
            f"--prompt {options.prompt:g}: with {tokens:g} sampled tokens above model.max_length={config.model.max_length}"
        )
    print(placement_report(config, options.gpu, options.gpus, tokens, options.prompt))
