"""weights: the policy of a checkpoint of stage 2, also while it runs, as a model that other programs load."""

import argparse
from pathlib import Path

from srl.commands.numbers import at_least
from srl.config import Config, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="FOLDER", help="gets the model and its tokenizer")
    parser.add_argument("--step", type=at_least(0), help="steps that the policy has taken (default: the newest checkpoint's)")


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.resume import checkpoints
    from srl.driver.rl import start_folder
    from srl.learner.export import export_checkpoint
    from srl.observe.run_directory import RunDirectory, make_folder

    target = Path(options.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to {target}: is there and not empty; name a new folder")
    path = RunDirectory.locate(config)
    store = checkpoints(config, path)
    newest = store.latest()
    there = store.steps()
    if newest is None or (options.step is not None and options.step not in there):
        have = f"there are those of steps {', '.join(map(str, there))}" if there else "stage 2 keeps them while it runs"
        if (best := path / "checkpoints" / "rl").is_dir():
            have += f"; the best policy is {best}, a Hugging Face folder"
        raise ConfigError(f"{store.folder}: no such checkpoint; {have}")
    make_folder("--to", target.parent)
    step = options.step if options.step is not None else there[-1]
    export_checkpoint(store.path(step) / "policy", start_folder(config, path), config, target)
    print(f"{target}: the policy after {step} steps")
