"""reproduce: tables and figures of the paper for the configured model, beside the paper's numbers."""

import argparse

from srl.config import Config, ConfigError, load_config
from srl.evaluation.paper import TABLES

FIGURES = (1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=int, action="append", default=[], choices=sorted(TABLES), help="may be repeated")
    parser.add_argument("--figure", type=int, action="append", default=[], choices=FIGURES, help="may be repeated")
    parser.add_argument("--all", action="store_true", help="every table and figure")


def run(options: argparse.Namespace, config: Config) -> None:
    """Prints Markdown and keeps it in reproduce.md of the run."""
    tables = sorted(TABLES) if options.all else options.table
    figures = FIGURES if options.all else options.figure
    if not tables and not figures:
        raise ConfigError("reproduce: name --table N, --figure N or --all")
    from srl.driver import reproduce
    from srl.observe.run_directory import RunDirectory, write_text

    def configure(more: list[str]) -> Config:
        return load_config(options.config or "tiny.yaml", [*options.overrides, *more])

    parts = [reproduce.table(TABLES[number], configure) for number in tables]
    parts += [reproduce.figure(number, configure) for number in figures]
    text = "\n\n".join(parts)
    print(f"\n{text}\n")
    write_text(RunDirectory.locate(config) / "reproduce.md", text + "\n")
