"""pretrain: make the embedded base model again."""

import argparse
from pathlib import Path

from srl.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="gets model and tokenizer; srl/tasks/base is the shipped one"
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.pretrain import pretrain
    from srl.observe.run_directory import make_folder

    make_folder("--to", Path(options.to))
    pretrain(config.pretrain, Path(options.to))
