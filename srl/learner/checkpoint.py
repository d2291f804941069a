"""Checkpoints on disk: one folder per step that appears only when whole.

step-00000012/
    part-0.safetensors ...   float32 weights and moments, each parameter whole in one of the parts; any number of ranks can read
                             them
    state.json               what the driver needs to continue
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from safetensors import safe_open
from safetensors.torch import save_file

from srl.config import ConfigError, OtherRunError
from srl.protocols.chat import first_line

T = TypeVar("T")
STEP = "step-" + 8 * "[0-9]"
PARTIAL = ".partial"
WHOLE = "whole"  # the file that says that an upload ended
UPLOAD_S = 3600.0  # longest wait for one checkpoint to be copied, there or here, or for all to be deleted
ANSWER_S = 60.0  # longest wait for a place to take its first file or to list what it has


def write_part(folder: Path, rank: int, tensors: dict[str, torch.Tensor], steps: int, generator: torch.Tensor) -> None:
    """One rank's share; `tensors` are named kind:parameter, `steps` counts optimizer updates."""
    save_file({**tensors, "generator": generator}, folder / f"part-{rank}.safetensors", {"steps": str(steps)})


def read_parts(folder: Path, rank: int) -> tuple[Iterator[tuple[str, dict[str, torch.Tensor]]], int, torch.Tensor | None]:
    """(parameter, its tensors by kind) one after the other; optimizer updates; this rank's generator if it had one."""
    files = sorted(folder.glob("part-*.safetensors"), key=lambda file: int(file.stem.removeprefix("part-")))
    if not files:
        raise FileNotFoundError(f"{folder}: no part-*.safetensors")
    with safe_open(files[0], framework="pt") as first:
        steps = int(first.metadata()["steps"])
    generator = None
    if rank < len(files):
        with safe_open(files[rank], framework="pt") as own:
            generator = own.get_tensor("generator")

    def states() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for file in files:
            with safe_open(file, framework="pt") as part:
                kinds: dict[str, list[str]] = {}
                for key in sorted(part.keys()):
                    if key != "generator":
                        kinds.setdefault(key.partition(":")[2], []).append(key)
                for name, keys in kinds.items():
                    yield name, {key.partition(":")[0]: part.get_tensor(key) for key in keys}

    return states(), steps, generator


class Checkpoints:
    """The checkpoints of one training, newest last; the `keep` newest are kept.

    With `upload`, any path that fsspec can write (s3://, gs://, file://), whole checkpoints are copied there in the background,
    one at a time: while one is on its way later ones are not sent. `owner` says whose they are, and is stored with every one.
    """

    def __init__(self, folder: Path, keep: int, upload: str = "", owner: str = ""):
        self.folder, self.keep, self.upload, self.owner = folder, keep, upload, owner
        self.sending: tuple[Path, Future] | None = None

    def steps(self) -> list[int]:
        return sorted(step_of(path) for path in self.folder.glob(STEP))

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """To begin with: the newest of those here and of those uploaded, from wherever; the latter is fetched.

        Raises ConfigError when another training's checkpoints are there, or the place does not answer.
        """
        if self.upload:
            self._fetch_later()
        return self.latest_here()

    def latest_here(self) -> Path | None:
        return self.path(steps[-1]) if (steps := self.steps()) else None

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], None]) -> None:
        """`write` fills the folder with its parts; a process that dies before the end leaves nothing that counts.

        Raises ConfigError when an earlier upload failed.
        """
        partial = self.folder / f"step-{step:08d}{PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        (partial / "state.json").write_text(json.dumps(state))
        flush(partial)
        shutil.rmtree(self.path(step), ignore_errors=True)
        partial.rename(self.path(step))
        if self.upload:
            self._send(self.path(step))
        for old in self.steps()[: -self.keep]:
            if self.sending and self.sending[0] == self.path(old):
                self._sent()
            shutil.rmtree(self.path(old))

    def close(self) -> None:
        """Return when the newest checkpoint has been copied away too. Raises ConfigError when it was not."""
        if not (self.upload and self.steps()):
            return
        newest = self.path(self.steps()[-1])
        if self.sending:
            self._sent()
        if not self.sending or self.sending[0] != newest:
            self._send(newest)
            self._sent()

    def _send(self, folder: Path) -> None:
        if self.sending:
            if not self.sending[1].done():
                return
            self._sent()
        self.sending = folder, begin(lambda: copy_out(folder, self.upload, self.keep, self.owner))

    def _sent(self) -> None:
        """Wait for the upload that is under way. Raises ConfigError when it fails or takes longer than `UPLOAD_S`."""
        folder, copying = self.sending
        finish(copying, UPLOAD_S, f"{folder.name}, kept in {folder.parent}, was not copied to {self.upload}")

    def check_upload(self) -> list[str]:
        """The folders of the whole checkpoints there, oldest first.

        Raises ConfigError when another training's are there, or the place does not answer.
        """

        def look() -> dict[str, str]:
            files, root = url_to_fs(self.upload)
            return {folder: files.cat_file(f"{folder}/{WHOLE}").decode() for folder in uploaded(files, root)}

        owners = finish(begin(look), ANSWER_S, f"the checkpoints in {self.upload} were not listed")
        if any(owner != self.owner for owner in owners.values()):
            raise OtherRunError(
                f"learner.upload: {self.upload} holds checkpoints of another configuration: choose another run.name"
            )
        return list(owners)

    def clear_upload(self) -> None:
        """Delete the checkpoints that are there, whoever's they are. Raises ConfigError when that fails."""

        def clear() -> None:
            files, root = url_to_fs(self.upload)
            for folder in files.glob(f"{root}/{STEP}"):
                files.rm(folder, recursive=True)

        finish(begin(clear), UPLOAD_S, f"the checkpoints in {self.upload} were not deleted")

    def _fetch_later(self) -> None:
        """The newest that is there, if it is later than all here; its file WHOLE tells it from those that were saved here."""
        there, here = self.check_upload(), self.steps()
        if not there or (here and step_of(there[-1]) <= here[-1]):
            return
        target = self.path(step_of(there[-1]))
        partial = target.with_name(target.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

        def fetch() -> None:
            files, _ = url_to_fs(self.upload)
            files.get(f"{there[-1]}/", f"{partial}/", recursive=True)

        finish(begin(fetch), UPLOAD_S, f"{target.name} was not fetched from {self.upload}")
        partial.rename(target)


def step_of(folder: str | Path) -> int:
    return int(Path(folder).name.removeprefix("step-"))


def check_writable(url: str) -> None:
    """Raises ConfigError when nothing can be written and listed there: no credentials, no such place, no answer."""

    def write() -> None:
        files, root = url_to_fs(url)
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/writable", b"srl")
        files.rm(f"{root}/writable")
        uploaded(files, root)

    finish(begin(write), ANSWER_S, f"nothing could be written to {url}")


def uploaded(files: AbstractFileSystem, root: str) -> list[str]:
    """The folders of the whole checkpoints there, oldest first."""
    files.invalidate_cache()  # other machines write there too
    return sorted((whole.rpartition("/")[0] for whole in files.glob(f"{root}/{STEP}/{WHOLE}")), key=step_of)


def begin(call: Callable[[], T]) -> Future[T]:
    """The call to a store, on a thread that a process which ends early, after an error or a stop, does not wait for."""
    calling: Future[T] = Future()

    def run() -> None:
        try:
            calling.set_result(call())
        except Exception as error:  # every kind of store has exceptions of its own
            calling.set_exception(error)

    threading.Thread(target=run, daemon=True, name="upload").start()
    return calling


def finish(calling: Future[T], seconds: float, failure: str) -> T:
    """What the call returns. Raises ConfigError with `failure` when the store fails or takes longer."""
    wait([calling], seconds)
    if not calling.done():
        raise ConfigError(f"learner.upload: {failure} in {seconds:g} s")
    if error := calling.exception():
        raise ConfigError(f"learner.upload: {failure}: {type(error).__name__}: {first_line(error)}") from error
    return calling.result()


def copy_out(folder: Path, url: str, keep: int, owner: str) -> None:
    """Copy a checkpoint; the file WHOLE, which names the owner, is written last. Then all but the `keep` newest
    whole ones are deleted there, also what uploads that were cut off have left: they go one at a time.

    Raises FileExistsError when a later one is there: training began with the latest, so another process goes on with it too.
    """
    files, root = url_to_fs(url)
    if (there := uploaded(files, root)) and step_of(there[-1]) > step_of(folder):
        raise FileExistsError(f"{Path(there[-1]).name} is there, of another process that trains under this run.name")
    target = f"{root}/{folder.name}"
    if files.exists(target):
        files.rm(target, recursive=True)
    files.makedirs(target, exist_ok=True)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        remote = f"{target}/{file.relative_to(folder).as_posix()}"
        files.makedirs(remote.rpartition("/")[0], exist_ok=True)
        files.put_file(str(file), remote)
    files.pipe_file(f"{target}/{WHOLE}", owner.encode())
    kept = [step_of(whole) for whole in uploaded(files, root)[-keep:]]
    for other in files.glob(f"{root}/{STEP}"):
        if step_of(other) not in kept:
            files.rm(other, recursive=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Raises ConfigError for a file that is missing or damaged."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or "step" not in state:
        raise ConfigError(f"{folder}/state.json: damaged; delete {folder} and training goes on from what was kept before it")
    return state


def flush(folder: Path) -> None:
    """The files are on disk before the folder gets its name."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
