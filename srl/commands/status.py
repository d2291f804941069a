"""status: what a run does now, in the terminal; on demand also a timeline of its Ray tasks."""

import argparse
import json
import os
from pathlib import Path

from srl.config import Config, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeline",
        metavar="FILE",
        help="also write Ray's task timeline, for chrome://tracing or ui.perfetto.dev; on a node of the run",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.observe.run_directory import RunDirectory
    from srl.observe.status import running_status

    path = RunDirectory.locate(config)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run directory")
    print(running_status(path))
    if options.timeline:
        from srl.driver.cluster import check_address

        check_address(config)
        write_timeline(options.timeline, config.run.cluster[1] or "auto")


def write_timeline(file: str, address: str) -> None:
    """Raises ConfigError where no cluster answers, and for a file that cannot be written."""
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise ConfigError(f"--timeline: no Ray cluster answers at {address} ({error})") from None
    try:
        events = ray.timeline()
    finally:
        ray.shutdown()
    try:
        Path(file).write_text(json.dumps(events))
    except OSError as error:
        raise ConfigError(f"--timeline: {file} cannot be written: {error.strerror}") from None
    print(f"timeline: {file}")
