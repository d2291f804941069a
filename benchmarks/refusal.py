"""How the command line of a benchmark ends where something cannot be used: in one line, before anything is measured."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from srl.config import Config, ConfigError, load_config
from srl.observe.run_directory import make_folder


class Failed(Exception):
    """Something that the benchmark started, or asks, failed; the message says what it said, or where."""


@contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within it ConfigError, Failed and a folder that should be new end the process with status 2 and one line."""
    try:
        yield
    except (ConfigError, Failed) as error:
        parser.error(str(error))
    except FileExistsError as error:
        parser.error(f"{error.filename}: is there already; name another --folder")


def check_runs(settings: Sequence[str], folder: Path | None = None) -> Config:
    """The configuration of the runs that a benchmark starts. Raises ConfigError for it, and for a folder that cannot be."""
    config = load_config("tiny.yaml", list(settings))
    if folder is not None:
        make_folder("--folder", folder)
    return config


def check_program(option: str, program: str) -> None:
    """Raises ConfigError where it is named and cannot be run."""
    if program and shutil.which(program) is None:
        raise ConfigError(f"{option} {program}: no such program".lstrip())


def last_words(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
