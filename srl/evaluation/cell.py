"""One cell of a results table: which model is asked how, on what, and the trajectories that are there already."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srl.config import ConfigError
from srl.protocols.chat import first_line
from srl.trajectory import Trajectory, from_record, to_record

COUNTED = "problems.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """`method` names it in the table; `model` is a folder or hub name; `source` says where the benchmark's problems are."""

    method: str
    model: str
    protocol: str
    benchmark: str
    temperature: float
    samples: int
    seed: int
    source: str = ""

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(f"{self.method}: {self.samples} samples at temperature 0 are {self.samples} times the same")

    def slug(self) -> str:
        """A folder name, readable and distinct."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.method} {self.benchmark}").strip("-")
        what = {name: value for name, value in asdict(self).items() if name != "source"}  # files may move
        return f"{words[:60]}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]}"


class Trajectories:
    """Graded trajectories of a cell in a folder of Parquet files, each written whole or not at all; keyed by id.

    They belong to one state of the model and the wording (`identity`): when that has changed, what an earlier evaluation left is
    deleted. Raises ConfigError for files that are damaged. More problems add to what is there.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, note = folder, folder / "identity.json"
        text = json.dumps(identity, indent=1, sort_keys=True)
        if folder.is_dir() and not (note.is_file() and note.read_bytes() == text.encode()):
            check_identity(note)
            for file in folder.iterdir():
                file.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            replace(note, text.encode())

    def read(self) -> dict[str, Trajectory]:
        return read_trajectories(self.folder)

    def add(self, trajectories: list[Trajectory]) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([to_record(item) for item in trajectories]), buffer, compression="zstd")
        number = max((int(file.stem) for file in self.folder.glob("*.parquet")), default=-1) + 1  # a damaged one may be deleted
        replace(self.folder / f"{number:05}.parquet", buffer.getvalue().to_pybytes())

    def count(self, problems: Iterable[str]) -> None:
        """Remember the ids of the problems that the row is about: there may be trajectories of others."""
        replace(self.folder / COUNTED, json.dumps(sorted(problems)).encode())


def read_counted(folder: Path) -> dict[str, Trajectory]:
    """The trajectories of a cell's row, by id; all of the folder where nothing says which. Raises ConfigError for a damaged
    file."""
    found, note = read_trajectories(folder), folder / COUNTED
    if not note.is_file():
        return found
    try:
        problems = json.loads(note.read_bytes())
    except ValueError:
        problems = None
    if not isinstance(problems, list):
        raise ConfigError(f"{note}: no list of problems; delete it and it is made again by the next evaluate --model")
    problems = set(problems)
    return {name: trajectory for name, trajectory in found.items() if trajectory.prompt_id in problems}


def read_trajectories(folder: Path) -> dict[str, Trajectory]:
    """By id; nothing from a folder that is not there. Raises ConfigError for a damaged file."""
    found = {}
    for file in sorted(folder.glob("*.parquet")):
        try:
            found.update((record["id"], from_record(record)) for record in pq.read_table(file).to_pylist())
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file}: no trajectories: {first_line(error)}; delete it and it is made again by the next evaluate --model"
            ) from None
    return found


def check_identity(note: Path) -> None:
    """Raises ConfigError for a file that is there and damaged: it does not say whose the trajectories beside it are."""
    try:
        whole = not note.is_file() or isinstance(json.loads(note.read_bytes()), dict)
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError(f"{note}: damaged; delete its folder and it is made again by the next evaluate --model")


def replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def fingerprint(model: str) -> list[list[Any]]:
    """Name, size and time of the weight files of a model folder; nothing for a name on the hub."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
