"""Files of JSON lines that a run appends to, each line with `phase` and `step`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srl.config import ConfigError
from srl.observe.run_directory import is_record, write_text


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of the file; a last line that was not finished is none. Raises ConfigError naming a line that holds none."""
    found = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else [], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not is_record(record):
            raise ConfigError(f"{file}, line {number}: no record; delete the line")
        found.append(record)
    return found


def forget(file: Path, first_steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """Drop the records of these phases from the given step on, which will be made again; returns what is left.

    An alarm belongs to the phase `during` which it was raised.
    """

    def again(record: dict[str, Any]) -> bool:
        phase = record.get("during", record["phase"])
        return phase in first_steps and record["step"] >= first_steps[phase]

    kept = [record for record in read_lines(file) if not again(record)]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
