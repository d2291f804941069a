"""The command line: python -m srl.main [command] [--config FILE] [section.key=value ...]

Each command is a module of srl/commands with `run(options, config)` and, if it has options of its own, `add_arguments(parser)`;
one that takes names besides settings, such as runs to compare, says in `NAMES` what they are and finds them in `options.names`.
"""

import argparse
import errno
import importlib
import os
import select
import signal
import sys
from pathlib import Path
from typing import TextIO

from srl.config import Config, ConfigError, OtherRunError, load_config, load_run, parse_override

# name: (module of srl/commands, help)
COMMANDS = {
    "run": ("phases", "everything that is not done yet: evaluation of the base, stage 1, stage 2, report (default)"),
    "stage1": ("phases", "sample attempts, verdicts and revisions; assemble demonstrations"),
    "sft": ("phases", "fine-tune on the demonstrations"),
    "rl": ("phases", "reinforcement learning from the fine-tuned model"),
    "orm": ("phases", "train an outcome reward model on the graded attempts, for evaluate --judge orm"),
    "evaluate": ("evaluate", "evaluate base, fine-tuned and RL model, or any model on any benchmark"),
    "compare": ("compare", "several runs side by side: table, paired tests, compare.html"),
    "reproduce": ("reproduce", "tables and figures of the paper beside its numbers; trains what they lack"),
    "chat": ("chat", "ask a model in the terminal and watch it answer, judge and correct itself"),
    "serve": ("serve", "an OpenAI-compatible endpoint that returns the final answer and all turns"),
    "size": ("size", "how long rollout workers and learner would wait for each other, from their speeds"),
    "report": ("report", "show the table and write report.html again"),
    "tune": ("tune", "temperature and threshold of stage-1 sampling by their balance score"),
    "export": ("export", "write the demonstrations as conversations: JSON lines and a datasets folder"),
    "import": ("import_set", "take conversations from elsewhere as demonstrations, for sft"),
    "weights": ("weights", "write the policy of a checkpoint of stage 2, also while it runs, as a Hugging Face folder"),
    "grade": ("grade", "grade the answers in a file"),
    "plan": ("plan", "placement, memory and time of an RL step on so many GPUs, on paper"),
    "status": ("status", "what a run is doing now: phase, numbers, actors, alarms"),
    "pretrain": ("pretrain", "train the embedded base model from nothing (it is shipped, so nobody needs to)"),
}

EPILOG = """\
examples:
  python -m srl.main                                      both stages on the embedded task
  python -m srl.main --dry-run rl.group=16                what would run, with derived numbers
  python -m srl.main run --config qwen2.5-math-7b.yaml    the paper's setting, on GPUs
  python -m srl.main COMMAND --help                       what a command takes
  ray job submit -- python -m srl.main                    the same on a cluster

A run that was stopped continues at its first missing phase; fresh=true starts over.
"""
OF_A_RUN = ("orm", "evaluate", "report", "weights")  # without --config: under the settings the run has, if it is there
ASKS_A_MODEL = ("chat", "serve")  # that of a run as it was trained: under the settings of RUN for --model RUN/checkpoints/NAME
MAY_START_OVER = ("run", "stage1", "sft", "rl")  # with fresh=true; everything else works with what is there
CONTINUE = (*MAY_START_OVER, "orm", "evaluate", "reproduce", "tune")  # where they were, when they are started again


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a setting, file or resource cannot be used, 130 stopped by Ctrl-C or SIGTERM, 141 nobody reads
    its output any more."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # A pipeline's thread that asks Ray something after a stopped run has ended it would start another one.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Processes of a local Ray inherit it. A thread that spins long while it waits takes the core from whoever it waits for.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = ""
    try:
        command = command_name(arguments)
        module = importlib.import_module(f"srl.commands.{COMMANDS[command][0]}")
        options = parser(command, module).parse_intermixed_args(arguments)
        options.command = command
        options.names = [value for value in options.overrides if "=" not in value] if hasattr(module, "NAMES") else []
        options.overrides = [value for value in options.overrides if value not in options.names]
        config = configuration(command, options)
        if config.run.fresh and command not in MAY_START_OVER:
            raise ConfigError(f"fresh=true would delete the run that {command} needs; it is for {', '.join(MAY_START_OVER)}")
        module.run(options, config)
        sys.stdout.flush()
    except BrokenPipeError:
        if not left_by_reader(sys.stdout):
            raise
        return 141
    except ConfigError as error:
        starts_over = isinstance(error, OtherRunError) and command in MAY_START_OVER
        print(f"srl: {error}{', or fresh=true to start over' * starts_over}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nsrl: stopped{'; the same command continues where it was' * (command in CONTINUE)}", file=sys.stderr)
        return 130
    except Exception as error:
        if (where := without_room(error)) is None:
            raise
        continues = "; then the same command continues where it was" * (command in CONTINUE)
        print(f"srl: no space is left on the disk of {where}: make room{continues}", file=sys.stderr)
        return 2
    return 0


def without_room(error: Exception) -> str | None:
    """What a full disk had no room for, here or in an actor; None for any other error."""
    full = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
    if not any(words in str(error) for words in full):
        return None
    return str(getattr(error, "filename", None) or "run.directory, /dev/shm, the system's temporary files or the output")


def left_by_reader(stream: TextIO) -> bool:
    """Whether nobody reads it any more, as after `| head`. Then what is still to be written to it goes nowhere."""
    poll = select.poll()
    poll.register(stream, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


def command_name(arguments: list[str]) -> str:
    """The command, taken out of the arguments; `run` when there is none. Prints the overview when only help is asked for."""
    if not arguments or arguments[0].startswith("-") or "=" in arguments[0]:
        if {"-h", "--help"} & set(arguments):
            overview().print_help()
            raise SystemExit(0)
        return "run"
    command = arguments.pop(0)
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}; commands are {', '.join(COMMANDS)}")
    return command


def configuration(command: str, options: argparse.Namespace) -> Config:
    """Those of --config; without it those of a run that is there: the one whose model is asked, or that the settings name for a
    command that works on one; else those of tiny.yaml."""
    file, overrides = options.config, options.overrides
    if not file and (folder := run_folder(command, options)) and (folder / "config.yaml").is_file():
        # A folder that was moved has another name than its settings say.
        name = [f"run.name={folder.name}"] if command in OF_A_RUN else []
        return load_run(folder, [*overrides, *name])
    return load_config(file or "tiny.yaml", overrides)


def run_folder(command: str, options: argparse.Namespace) -> Path | None:
    if command in ASKS_A_MODEL:
        folder = Path(options.model).absolute()
        return folder.parents[1] if folder.parent.name == "checkpoints" else None
    if command in OF_A_RUN:
        run = load_config("tiny.yaml", [value for value in options.overrides if parse_override(value)[0][0] == "run"]).run
        return Path(run.directory, run.name)
    return None


def overview() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="python -m srl.main",
        usage="%(prog)s [command] [options] [section.key=value ...]",
        description=f"Train a language model to answer, judge its answer, correct it and stop.\n\ncommands:\n{commands}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parser(command: str, module) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog=f"python -m srl.main {command}", description=COMMANDS[command][1])
    fresh = "fresh=true, " if command in MAY_START_OVER else ""
    words = f"settings: section.key=value, also {fresh}seed=N, name=NAME"
    if hasattr(module, "NAMES"):
        result.add_argument("overrides", nargs="*", metavar=module.NAMES, help=f"{module.NAMES} names, and {words}")
    else:
        result.add_argument("overrides", nargs="*", metavar="section.key=value", help=words)
    result.add_argument("--config", metavar="FILE", help="YAML file (default: configs/tiny.yaml)")
    if hasattr(module, "add_arguments"):
        module.add_arguments(result)
    return result


if __name__ == "__main__":
    sys.exit(main())
