"""The folder of one run: what was asked, what is done, what was measured.

config.yaml          the resolved configuration; a run continues only under the same one
placement.yaml       settings that may change, as they were last: where and how it runs
state.json           finished phases and their seconds
metrics.jsonl        one line per measurement, `phase` and `step` first; the same numbers go to tensorboard/
results.json         one row per method and benchmark
lock                 held by the process that works here
*-run                of each of run.sinks, the id under which it continues this run
status.json          what the run is doing now, for the `status` command
stacks-*.txt         of all actors, from a time at which nothing moved
trajectories.jsonl   samples to read
stage1/              samples/, demonstrations.parquet, difficulty.parquet (share of right attempts of every problem), the
                     data card as card.json, card.md and card/*.svg
checkpoints/         ift, rl: Hugging Face folders
report.html
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from srl.config import Config, ConfigError, OtherRunError, read_settings
from srl.observe.scalars import Scalars

# Settings that say where and how to run; changing them does not make it another run.
FREE = {
    "run": {
        "fresh",
        "directory",
        "ray_address",
        "nodes_wait_s",
        "local_cpus",
        "object_store_mib",
        "dashboard_port",
        "log",
        "sinks",
        "heartbeat_s",
        "stall_s",
    },
    # Not judge_url: it is all that says which model judges.
    "protocol": {"judge_timeout_s"},
    # Samples are seeded by prompt, so it does not matter where or beside which others they are made.
    "rollout": {"nodes", "workers", "cpus", "gpus", "colocate", "threads", "tensor_parallel", "kv_cache_gib", "gpu_memory"}
    | {"max_sequences", "max_held", "record", "timeout_s", "hang_s", "start_timeout_s", "retries"},
    # Any number of ranks can read a checkpoint.
    "learner": {"nodes", "workers", "cpus", "gpus", "zero_stage", "micro_batch_tokens", "gradient_checkpointing", "threads"}
    | {"offload_optimizer", "start_timeout_s", "timeout_s", "bucket_mib", "checkpoint_every", "keep_checkpoints", "upload"}
    | {"retries", "transfer", "transfer_timeout_s"},
    "reward": {"nodes", "workers", "cpus", "processes", "recycle_after", "timeout_s", "alarm_share"},
    "sft": {"checkpoint_every"},
    "evaluate": {"block"},
}
LEAST_FREE_BYTES = 2**30
# Where a run keeps what it has come to: as long as there is none of it, its settings may change.
KEPT = ("state.json", "metrics.jsonl", "results.json", "evaluations", "stage1", "checkpoints", "resume")


class RunDirectory:
    def __init__(self, config: Config):
        """Create or continue the directory. Raises ConfigError as `check_directory`, for a full disk, and where none can be."""
        self.path = self.locate(config)
        check_directory(config)
        check_disk(self.path)
        make_folder("run.directory", self.path)
        self._note(config)
        for folder in ("stage1/samples", "checkpoints"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self.scalars = Scalars(self.path / "tensorboard")
        self.current, self.step, self.moved = "start", 0, time.monotonic()
        self.listeners: list[Callable[[str, int, Mapping[str, Any]], None]] = []

    def _note(self, config: Config) -> None:
        """The settings, but for a process that works here: they are its own. Raises ConfigError where it began under others."""
        try:
            with self.alone():
                write_text(self.path / "config.yaml", yaml.safe_dump(identity(config), sort_keys=False))
                write_text(self.path / "placement.yaml", yaml.safe_dump(placement(config), sort_keys=False))
        except ConfigError:
            if changes(self.path, config):
                raise

    @staticmethod
    def locate(config: Config) -> Path:
        return Path(config.run.directory).absolute() / config.run.name

    def file(self, name: str) -> Path:
        """A path in this directory. Raises ValueError for a name that leads out of it."""
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f"{name!r} leads out of the run directory {self.path}")
        return path

    def alone(self) -> AbstractContextManager[None]:
        """Raises ConfigError if another process works in this directory, or no file can be locked there.

        A process that dies, however it does, lets go of it.
        """
        return alone_in(self.path)

    def context(self) -> dict[str, Any]:
        """Where the run is, for log lines."""
        return {"run": self.path.name, "phase": self.current, "step": self.step}

    def done(self) -> dict[str, float]:
        """Finished phases and their seconds."""
        return finished(self.path)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; it counts as done only if the block ends without an error."""
        self.current, self.step = name, 0
        self.moved = started = time.monotonic()
        yield
        seconds = round(time.monotonic() - started, 1)
        self.write_done({**self.done(), name: seconds})
        self.record("phase", 0, name=name, seconds=seconds)

    def undo(self, name: str) -> None:
        """That phase counts as not done any more."""
        if name in (done := self.done()):
            self.write_done({other: seconds for other, seconds in done.items() if other != name})

    def write_done(self, phases: Mapping[str, float]) -> None:
        write_text(self.file("state.json"), json.dumps({"phases": phases}, indent=1))

    def record(self, phase: str, step: int, **values: Any) -> None:
        """One line of metrics; numbers also go to TensorBoard as `phase/name`, and to every listener."""
        self.step, self.moved = step, time.monotonic()
        append_line(self.file("metrics.jsonl"), {"phase": phase, "step": step, **values})
        if phase == "phase":
            return
        for listener in self.listeners:
            listener(phase, step, values)
        self.scalars.add(phase, step, values)

    def add_row(self, row: dict[str, Any], trajectories: list[dict[str, Any]]) -> None:
        """Put a row into results.json, in place of an earlier one of the same method and benchmark, and keep its samples."""
        rows = {(old["method"], old["benchmark"]): old for old in self.rows()}
        rows[row["method"], row["benchmark"]] = row
        write_text(self.file("results.json"), json.dumps({"schema": 1, "rows": list(rows.values())}, indent=1))
        file = self.file("trajectories.jsonl")
        own = {"method": row["method"], "benchmark": row["benchmark"]}
        begin = json.dumps(own)[:-1] + ","  # as every line of theirs does
        old = file.read_text().splitlines() if file.exists() else []
        new = [json.dumps(own | record) for record in trajectories]
        write_text(file, "".join(line + "\n" for line in [*(line for line in old if not line.startswith(begin)), *new]))

    def rows(self) -> list[dict[str, Any]]:
        """Raises ConfigError as `read_rows`."""
        return read_rows(self.path)

    def close(self) -> None:
        self.scalars.close()


def write_text(path: Path, text: str) -> None:
    """The file is either the old one or the new one, whenever the process dies."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def append_line(file: Path, record: Mapping[str, Any]) -> None:
    """One more line of JSON. A last line that a full disk or the loss of a node has cut off is none: this one takes its place."""
    with file.open("ab+") as lines:
        end = lines.seek(0, os.SEEK_END)
        lines.seek(max(0, end - 1))
        if end and lines.read(1) != b"\n":
            lines.seek(0)
            lines.truncate(lines.read().rfind(b"\n") + 1)
        lines.write(json.dumps(record).encode() + b"\n")


def identity(config: Config) -> dict[str, Any]:
    """The settings that make this run what it is."""
    settings = config.model_dump(mode="json")
    for section, keys in FREE.items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in keys}
    return settings


def placement(config: Config) -> dict[str, Any]:
    """The other settings, for commands that work on the run later; without those of the one start or of the folder's place."""
    settings = config.model_dump(mode="json", exclude={"run": {"fresh", "directory"}})
    return {section: {key: value for key, value in settings[section].items() if key in keys} for section, keys in FREE.items()}


def finished(path: Path) -> dict[str, float]:
    """Finished phases of the run in that directory and their seconds. Raises ConfigError for a damaged state.json."""
    phases = (read_json(path / "state.json") or {}).get("phases", {})
    if not isinstance(phases, dict):
        raise ConfigError(f"{path / 'state.json'}: no finished phases; delete it and what is there is gone through again")
    return phases


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the run in that directory. Raises ConfigError for a results.json that holds anything else."""
    file = path / "results.json"
    rows = (read_json(file) or {}).get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= {"method", "benchmark"} for row in rows):
        raise ConfigError(f"{file}: no rows of results; delete it and evaluate --model makes them again")
    return rows


def is_record(value: Any) -> bool:
    """Whether it is a line of measurements."""
    return isinstance(value, dict) and value.keys() >= {"phase", "step"}


def read_json(file: Path) -> dict[str, Any] | None:
    """None if there is no such file. Raises ConfigError for one that is no JSON object."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: expected an object, found {type(found).__name__}")
    return found


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Raises ConfigError if another process holds the lock, or where there can be none."""
    with ExitStack() as held:
        try:
            fcntl.flock(held.enter_context((path / "lock").open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path}: another process works in this run directory; let it end, stop it, or choose another run.name"
            ) from None
        except OSError as error:
            raise ConfigError(f"run.directory: {path / 'lock'} cannot be locked: {error.strerror}") from None
        yield


def start_over(config: Config) -> None:
    """Delete what an earlier run of this name left: once, before a run with `fresh` begins. Raises as `check_directory`."""
    check_directory(config)
    path = RunDirectory.locate(config)
    if config.run.fresh and path.exists():
        with alone_in(path):
            shutil.rmtree(path)


def check_directory(config: Config) -> None:
    """Raises ConfigError for a directory that cannot be, that holds another configuration's run or a damaged config.yaml, or
    what `fresh` may not delete."""
    path = RunDirectory.locate(config)
    check_folder_writable("run.directory", path)
    if config.run.fresh:
        if path.is_dir() and any(path.iterdir()) and not (path / "config.yaml").exists():
            raise ConfigError(f"run.fresh: {path} holds no run (no config.yaml), so it is not deleted")
    elif (changed := changes(path, config)) and any(file.is_file() for file in kept(path)):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise OtherRunError(
            f"{path} holds a run of another configuration ({'; '.join(changed[:3])}{more}): choose another run.name"
        )


def changes(path: Path, config: Config) -> list[str]:
    """Settings that were others when the run in that directory was made. One that did not exist then had its default; the name
    is that of the folder, which may have been moved. Raises ConfigError as `read_settings`."""
    if not (path / "config.yaml").exists():
        return []
    before, defaults, settings = read_settings(path / "config.yaml"), identity(Config()), identity(config)
    had = {section: defaults[section] | before.get(section, {}) for section in settings}
    return [
        f"{section}.{key} was {had[section][key]!r}, now {value!r}"
        for section, values in settings.items()
        for key, value in values.items()
        if had[section][key] != value and (section, key) != ("run", "name")
    ]


def kept(path: Path) -> Iterator[Path]:
    for name in KEPT:
        yield path / name
        yield from (path / name).rglob("*")


def make_folder(setting: str, folder: Path) -> None:
    """Raises ConfigError as `check_folder_writable`."""
    check_folder_writable(setting, folder)
    folder.mkdir(parents=True, exist_ok=True)


def check_folder_writable(setting: str, folder: Path) -> None:
    """Raises ConfigError that names the setting where the folder can be neither made nor written to. Leaves nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".try-", dir=there):
            pass
    except OSError as error:
        how = "written to" if there == folder else "made"
        raise ConfigError(f"{setting}: {folder} cannot be {how}: {error.strerror}") from None


def check_disk(path: Path) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        raise ConfigError(f"run.directory={path.parent}: {free / 2**20:.0f} MiB free on its disk, at least 1024 MiB are needed")
