"""The command line: python -m srl.main [command] [--config FILE] [section.key=value ...]"""

import argparse
import os
import sys

import yaml

from srl.config import Config, ConfigError, load_config

COMMANDS = {
    "run": "everything that is not done yet: base evaluation, stage 1, fine-tuning, RL, evaluation, report (default)",
    "stage1": "sample attempts, verdicts and revisions; assemble demonstrations",
    "sft": "fine-tune on the demonstrations",
    "rl": "reinforcement learning from the fine-tuned model",
    "evaluate": "evaluate base, fine-tuned and RL model, whichever exist",
    "report": "show the table and write report.html again",
    "pretrain": "train the embedded base model from nothing (an hour or more; it is shipped, so nobody needs to)",
}

EPILOG = """\
examples:
  python -m srl.main                                      both stages on the embedded task
  python -m srl.main --dry-run rl.group=16                what would run, with derived numbers
  python -m srl.main run --config qwen2.5-math-7b.yaml    the paper's setting, on GPUs
  ray job submit -- python -m srl.main                    the same on a cluster

A run that was stopped continues at its first missing phase; fresh=true starts over.
"""


def parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    result = argparse.ArgumentParser(
        prog="python -m srl.main",
        description=f"Train a language model to answer, judge its answer, correct it and stop.\n\ncommands:\n{commands}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("command", nargs="?", default="run", metavar="command", help="see above")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings; also fresh=true, seed=N, name=NAME")
    result.add_argument("--config", metavar="FILE", help="YAML file (default: configs/tiny.yaml)")
    result.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and derived numbers, run nothing"
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a setting, file or resource cannot be used, 130 stopped by Ctrl-C or SIGTERM."""
    options = parser().parse_intermixed_args(arguments)
    command, overrides = options.command, options.overrides
    if "=" in command:
        command, overrides = "run", [command, *overrides]
    try:
        if command not in COMMANDS:
            raise ConfigError(f"no command {command!r}; commands are {', '.join(COMMANDS)}")
        config = load_config(options.config or "tiny.yaml", overrides)
        if options.dry_run:
            dry_run(config)
        else:
            start(command, config)
    except ConfigError as error:
        print(f"srl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsrl: stopped; the same command continues where it was", file=sys.stderr)
        return 130
    return 0


def start(command: str, config: Config) -> None:
    """Heavy imports happen here, so that help and errors are quick."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if command == "pretrain":
        from srl.driver.pretrain import pretrain_base

        pretrain_base(config.pretrain)
        return
    from srl.driver import run

    run.report(config) if command == "report" else run.run_phases(config, command)


def dry_run(config: Config) -> None:
    from srl.driver.plan import derived

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
    print("\n# derived")
    for name, value in derived(config).items():
        print(f"# {name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
