"""reproduce: tables and figures of the paper for the configured model, beside the paper's numbers."""

import argparse
import functools

from srl.commands.numbers import several
from srl.config import Config, ConfigError, load_config
from srl.evaluation.paper import TABLES

FIGURES = (1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--table", type=int, action="append", default=[], choices=sorted(TABLES), help="may be repeated")
    add("--figure", type=int, action="append", default=[], choices=FIGURES, help="may be repeated")
    add("--all", action="store_true", help="every table and figure")
    add("--as-is", action="store_true", help="train nothing: rows whose run is not finished stay empty")
    add("--seeds", type=several(int), default=[], metavar="0,1,2", help="runs NAME-0, NAME-1, ...; shown as mean and range")


def run(options: argparse.Namespace, config: Config) -> None:
    """Prints Markdown and keeps it in reproduce.md: of the run, or of several seeds as NAME-reproduce.md beside them."""
    tables = sorted(TABLES) if options.all else options.table
    figures = FIGURES if options.all else options.figure
    if not tables and not figures:
        raise ConfigError("reproduce: name --table N, --figure N or --all")
    from srl.driver.reproduce import reproduce
    from srl.observe.run_directory import RunDirectory, write_text

    def configure(own: list[str], more: list[str]) -> Config:
        return load_config(options.config or "tiny.yaml", [*options.overrides, *own, *more])

    mains = [[f"name={config.run.name}-{seed}", f"seed={seed}"] for seed in options.seeds] or [[]]
    text = reproduce(tables, figures, [functools.partial(configure, own) for own in mains], not options.as_is)
    print(f"\n{text}\n")
    path = RunDirectory.locate(config)
    write_text(path.with_name(f"{path.name}-reproduce.md") if options.seeds else path / "reproduce.md", text + "\n")
