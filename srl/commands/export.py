"""export: a run's demonstrations as conversations that other programs train on."""

import argparse
from pathlib import Path

from srl.config import Config, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="FOLDER", help="gets train.jsonl, validation.jsonl and datasets/")


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.observe.run_directory import RunDirectory, make_folder
    from srl.pipelines.conversation import export

    demonstrations = RunDirectory.locate(config) / "stage1" / "demonstrations.parquet"
    if not demonstrations.exists():
        raise ConfigError(f"{demonstrations}: no demonstrations; run stage1 first")
    make_folder("--to", Path(options.to))
    counts = export(demonstrations, Path(options.to))
    print(f"{options.to}: " + ", ".join(f"{count} {split}" for split, count in sorted(counts.items())))
