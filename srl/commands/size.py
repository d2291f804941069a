"""size: how long rollout workers and learner would wait for each other, from their speeds."""

import argparse

from srl.commands.numbers import above, at_least, check_mean, several
from srl.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = {"type": above(0), "required": True, "metavar": "N"}
    parser.add_argument("--full", **number, help="tokens/s of one worker that runs rollout.max_sequences at once")
    parser.add_argument("--alone", **number, help="tokens/s of one worker that runs a single sequence")
    parser.add_argument("--learner", **number, help="tokens/s of the whole learner")
    parser.add_argument("--tokens", **number, help="mean sampled tokens of a trajectory")
    parser.add_argument(
        "--spread", type=at_least(0, float), default=0.6, help="standard deviation of the lengths' logarithm (0.6)"
    )
    parser.add_argument("--sync", type=at_least(0, float), default=0.0, help="seconds of a weight sync (0)")
    parser.add_argument(
        "--workers", type=several(at_least(1)), default=[], metavar="1,2,4", help="numbers to compare (rollout.workers)"
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.rollout.simulated import Cluster, simulate

    check_mean(options.tokens, config)
    print(f"rollout.weight_update={config.rollout.weight_update} learner.transfer={config.transfer}")
    print("workers  ahead   s/step  tokens/s  rollout idle  learner idle")
    for workers in options.workers or [config.rollout.workers]:
        for ahead in (0,) if config.rollout.colocate else (0, 1):
            shares = simulate(
                Cluster(
                    workers,
                    options.alone,
                    options.full,
                    options.learner,
                    options.tokens,
                    config.rollout.max_response_tokens,
                    options.spread,
                    config.rollout.max_sequences,
                    config.rl.prompts,
                    config.rl.group,
                    options.sync,
                    ahead,
                    finish=config.rollout.weight_update == "finish",
                    together=config.transfer != "store",
                )
            )
            print(
                f"{workers:>7}  {ahead:>5}  {shares.step_s:>7.1f}  {shares.tokens_s:>8,.0f}"
                f"  {100 * shares.rollout_idle:>10.0f} %  {100 * shares.learner_idle:>10.0f} %"
            )
