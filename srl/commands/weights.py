"""weights: the policy of a checkpoint of stage 2, also while it runs, as a model that other programs load."""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from srl.commands.numbers import at_least
from srl.config import Config, ConfigError

TRIES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="FOLDER", help="gets the model and its tokenizer")
    parser.add_argument("--step", type=at_least(0), help="steps that the policy has taken (default: the newest checkpoint's)")


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.resume import checkpoints, link_or_copy
    from srl.driver.rl import start_folder
    from srl.learner.export import export_checkpoint
    from srl.observe.run_directory import RunDirectory, make_folder

    target = Path(options.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to {target}: is there and not empty; name a new folder")
    path = RunDirectory.locate(config)
    store = checkpoints(config, path)
    step = wanted(store, options.step, path)
    make_folder("--to", target.parent)
    beside = path if os.access(path, os.W_OK) else None  # where files are linked, elsewhere they are copied
    for tries_left in reversed(range(TRIES)):
        try:
            with tempfile.TemporaryDirectory(prefix=".weights-", dir=beside) as held:
                # Files of these names stay when stage 2 deletes the checkpoint while they are read.
                shutil.copytree(store.path(step) / "policy", held, copy_function=link_or_copy, dirs_exist_ok=True)
                export_checkpoint(Path(held), start_folder(config, path), config, target)
            break
        except (FileNotFoundError, shutil.Error):  # it was being deleted already
            if not tries_left:
                raise
            time.sleep(1)
            step = wanted(store, options.step, path)
    print(f"{target}: the policy after {step} steps")


def wanted(store: Any, step: int | None, run: Path) -> int:
    """That step, or the newest that there is. Raises ConfigError with what there is."""
    if step in store.steps():
        return step
    newest, there = store.latest(), store.steps()
    if newest is None or step not in (None, *there):
        have = f"there are those of steps {', '.join(map(str, there))}" if there else "stage 2 keeps them while it runs"
        if (best := run / "checkpoints" / "rl").is_dir():
            have += f"; the best policy is {best}, a Hugging Face folder"
        raise ConfigError(f"{store.folder}: no such checkpoint; {have}")
    return there[-1] if step is None else step
