"""Stage 2 in the run directory, so that it goes on after its process was killed at any moment."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from srl.config import Config
from srl.driver.ledger import Ledger
from srl.driver.policy import PolicyUpdate
from srl.driver.selection import Selection
from srl.learner.checkpoint import WHOLE, Checkpoints, read_state
from srl.observe.records import forget
from srl.observe.run_directory import RunDirectory, identity
from srl.weights.bucket import folder_tensors, write_bucket
from srl.weights.bundle import Bundle, put_bundle, receive

STORED_S = 60.0  # longest wait for weights that are in the object store already


def checkpoints(config: Config, run: Path) -> Checkpoints:
    """Those of the run in that directory."""
    upload = config.learner.upload
    return Checkpoints(
        run / "resume" / "rl",
        config.learner.keep_checkpoints,
        f"{upload.rstrip('/')}/{config.run.name}" if upload else "",
        hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest(),
    )


def prepare_upload(config: Config, run: Path) -> None:
    """With `fresh`, what an earlier run of this name uploaded is deleted with its directory.

    Raises ConfigError where it belongs to a run of another configuration, before anything starts.
    """
    if config.learner.upload:
        store = checkpoints(config, run)
        store.clear_upload() if config.run.fresh else store.check_upload()


def save(
    store: Checkpoints,
    step: int,
    version: int,
    update: PolicyUpdate,
    ledger: Ledger,
    selection: Selection,
    previous: Bundle | None,
    best: Path,
) -> None:
    """Everything that the steps from `step` on depend on; where it is uploaded, also the best policy so far, as `best`."""

    def write(folder: Path) -> None:
        update.save_state(folder)
        if store.upload and best.is_dir():
            shutil.copytree(best, folder / "best", copy_function=link_or_copy)
        if previous is not None:
            (folder / "previous").mkdir()
            for index, bucket in enumerate(receive(previous, STORED_S)):
                write_bucket(bucket, folder / "previous" / f"{index:05d}.safetensors")

    state = {
        "step": step,
        "weight_version": version,
        "ledger": ledger.to_record(),
        "selection": {"step": selection.best_step, "best": selection.best, "without_better": selection.without_better},
        "update": update.to_record(),
    }
    store.save(step, state, write)


def load(
    folder: Path, config: Config, update: PolicyUpdate, ledger: Ledger, selection: Selection
) -> tuple[int, int, Bundle | None]:
    """Put everything back as it was; returns the step to go on with, the weight version and the previous policy's weights."""
    state = read_state(folder)
    update.load_state(folder)
    update.from_record(state["update"])
    ledger.restore(state["ledger"])
    selection.best_step, selection.without_better = state["selection"]["step"], state["selection"]["without_better"]
    selection.best = tuple(state["selection"]["best"])
    version = state["weight_version"]
    return state["step"], version, read_previous(folder, version - 1, config)


def restore_best(folder: Path, best: Path) -> None:
    """The best policy of a checkpoint, where there is none or, if it was fetched, one of before."""
    if (folder / "best").is_dir() and ((folder / WHOLE).exists() or not best.exists()):
        partial = best.with_name(best.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder / "best", partial)
        shutil.rmtree(best, ignore_errors=True)
        partial.rename(best)


def link_or_copy(source: str, target: str) -> None:
    """A policy's folder is replaced as a whole and its files never change, so links to them do."""
    try:
        os.link(source, target)
    except OSError:  # not on every file system
        shutil.copy2(source, target)


def read_previous(folder: Path, version: int, config: Config) -> Bundle | None:
    if not (folder / "previous").is_dir():
        return None
    return put_bundle(version, folder_tensors(folder / "previous"), config.learner.bucket_mib)


def forget_after(run: RunDirectory, step: int) -> list[dict[str, Any]]:
    """Drop what was recorded for `step` and later, which will be done again; returns RL's records of earlier steps.

    A validation belongs to the weights before its step, and comes before the checkpoint.
    """
    forget(run.file("ledger.jsonl"), {"rl": step})
    first = {"rl": step, "rl-validation": step + 1, "handshake": step}
    run.scalars.forget(first)
    return [record for record in forget(run.file("metrics.jsonl"), first) if record["phase"] == "rl"]
