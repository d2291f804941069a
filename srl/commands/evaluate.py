"""evaluate: the run's own models, or any model on any benchmark with any protocol."""

import argparse

from srl.commands import phases
from srl.commands.numbers import at_least
from srl.config import Config, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    phases.add_arguments(parser)
    add = parser.add_argument
    add("--model", action="append", default=[], help="base, ift, rl, a Hugging Face folder or hub name; may be repeated")
    add(
        "--benchmark",
        action="append",
        default=[],
        help="a benchmark, a file of problems or a hub data set; may be repeated",
    )
    add("--protocol", action="append", default=[], help="long_chain, two_turn, prompted, intrinsic, ...; may be repeated")
    add("--judge", default="", metavar="orm|DIR", help="the reward model that the protocols judged, judged_chain, ... ask")
    add("--temperature", type=at_least(0, float), help="0 is greedy (default: evaluate.temperature)")
    add("--samples", type=at_least(1), help="trajectories per problem (default: evaluate.samples)")
    add("--sampling-seed", type=int, help="seed of the samples (default: run.seed)")


def run(options: argparse.Namespace, config: Config) -> None:
    asked = (
        options.benchmark
        or options.protocol
        or options.judge
        or [value for value in (options.temperature, options.samples, options.sampling_seed) if value is not None]
    )
    if not options.model:
        if asked:
            raise ConfigError(
                "evaluate: --benchmark, --protocol, --judge, --temperature, --samples and --sampling-seed need a --model"
            )
        phases.run(options, config)
        return
    from srl.driver.models import Asked, checked, evaluate_models
    from srl.driver.run import show
    from srl.evaluation.compare import compare_within, sentences
    from srl.observe.progress import say
    from srl.observe.run_directory import RunDirectory

    how = (options.temperature, options.samples, options.sampling_seed)
    asked = [Asked(model, protocol, *how) for model in options.model for protocol in options.protocol or [""]]
    if options.dry_run:
        phases.dry_run(config)
        checked(config, asked, options.benchmark, options.judge)
        return
    rows = evaluate_models(config, asked, options.benchmark, judge=options.judge)
    run = RunDirectory(config)
    show(run)
    for sentence in sentences(compare_within(run.path, rows)):
        say(sentence)
