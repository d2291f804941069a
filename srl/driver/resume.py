"""Stage 2 in the run directory, so that it goes on after its process was killed at any moment."""

from pathlib import Path
from typing import Any

from srl.config import Config
from srl.driver.ledger import Ledger
from srl.driver.policy import PolicyUpdate
from srl.driver.selection import Selection
from srl.learner.checkpoint import Checkpoints, read_state
from srl.observe.records import forget
from srl.observe.run_directory import RunDirectory
from srl.weights.bucket import folder_tensors, write_bucket
from srl.weights.bundle import Bundle, put_bundle, receive

STORED_S = 60.0  # longest wait for weights that are in the object store already


def checkpoints(config: Config, run: Path) -> Checkpoints:
    """Those of the run in that directory."""
    upload = config.learner.upload
    return Checkpoints(
        run / "resume" / "rl", config.learner.keep_checkpoints, f"{upload.rstrip('/')}/{config.run.name}" if upload else ""
    )


def save(
    store: Checkpoints,
    step: int,
    version: int,
    update: PolicyUpdate,
    ledger: Ledger,
    selection: Selection,
    previous: Bundle | None,
) -> None:
    """Everything that the steps from `step` on depend on."""

    def write(folder: Path) -> None:
        update.save_state(folder)
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


def read_previous(folder: Path, version: int, config: Config) -> Bundle | None:
    if not (folder / "previous").is_dir():
        return None
    return put_bundle(version, folder_tensors(folder / "previous"), config.learner.bucket_mib)


def forget_after(run: RunDirectory, step: int) -> list[dict[str, Any]]:
    """Drop what was recorded for `step` and later, which will be done again; returns RL's records of earlier steps.

    A validation belongs to the weights before its step, and comes before the checkpoint.
    """
    forget(run.file("ledger.jsonl"), {"rl": step})
    first = {"rl": step, "alarm": step, "rl-validation": step + 1, "handshake": step}
    run.scalars.forget(first)
    return [record for record in forget(run.file("metrics.jsonl"), first) if record["phase"] == "rl"]
