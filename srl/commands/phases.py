"""run, stage1, sft, rl, evaluate: phases of a run, in their order."""

import argparse

import yaml

from srl.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and derived numbers, run nothing"
    )


def run(options: argparse.Namespace, config: Config) -> None:
    if options.dry_run:
        from srl.driver.check import check_dry
        from srl.driver.run import left

        dry_run(config)
        for source in check_dry(config, left(config, (options.command,))):
            print(f"# not looked at: {source}, from the hub")
        return
    from srl.driver.run import run_phases, show

    show(run_phases(config, options.command))


def dry_run(config: Config) -> None:
    from srl.driver.plan import derived

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
    print("\n# derived")
    for name, value in derived(config).items():
        print(f"# {name}: {value}")
