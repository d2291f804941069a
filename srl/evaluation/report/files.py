"""What a report reads: the files of one run directory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srl.observe.run_directory import is_record, read_json, read_rows

Record = dict[str, Any]
SAMPLE = {"method", "benchmark", "id", "prompt_id", "question", "gold", "prompt_token_ids", "turns", "stop_reason"}


@dataclass(frozen=True)
class RunFiles:
    """Contents by file; what is missing is empty. `remarks` are about lines that could not be read; `called` is the run's name
    where another run's folder is called the same."""

    path: Path
    rows: list[Record] = field(default_factory=list)
    metrics: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    card: Record | None = None
    config: str = ""
    remarks: list[str] = field(default_factory=list)
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or self.path.resolve().name

    def phase(self, name: str) -> list[Record]:
        """Lines of metrics.jsonl of one phase."""
        return [line for line in self.metrics if line.get("phase") == name]


def read_run(directory: Path) -> RunFiles:
    """Raises ConfigError for a damaged results.json or card.json."""
    directory = Path(directory)
    metrics, bad_metrics = read_lines(directory / "metrics.jsonl", is_record)
    samples, bad_samples = read_lines(directory / "trajectories.jsonl", is_sample)
    config = directory / "config.yaml"
    return RunFiles(
        directory,
        read_rows(directory),
        metrics,
        samples,
        read_json(directory / "stage1" / "card.json"),
        config.read_text("utf-8", "replace") if config.is_file() else "",
        bad_metrics + bad_samples,
    )


def read_lines(path: Path, wanted: Callable[[Any], bool]) -> tuple[list[Record], list[str]]:
    """JSON lines that are `wanted`, and a remark on others: the last line of a run that is still writing, or was killed."""
    found, bad = [], 0
    for line in filter(bytes.strip, path.read_bytes().split(b"\n") if path.is_file() else []):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if wanted(record):
            found.append(record)
        else:
            bad += 1
    return found, [f"Lines of {path.name} that are no records and were left out: {bad}."] if bad else []


def is_sample(value: Any) -> bool:
    """Whether it is a line of trajectories.jsonl."""
    return isinstance(value, dict) and value.keys() >= SAMPLE


def series(lines: list[Record], phase: str, key: str) -> tuple[list[float], list[float]]:
    """Steps and values; of two lines with one step, which a resumed run writes, the later counts."""
    points = {line["step"]: line[key] for line in lines if line.get("phase") == phase and line.get(key) is not None}
    return tuple(zip(*sorted(points.items()), strict=True)) or ((), ())
