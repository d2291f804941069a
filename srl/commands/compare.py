"""compare: several runs side by side."""

import argparse
from pathlib import Path

from srl.config import Config, ConfigError

NAMES = "RUN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="compare.html", metavar="FILE", help="page to write (default: compare.html)")


def run(options: argparse.Namespace, config: Config) -> None:
    """Runs are folders, or names of folders under run.directory."""
    directories = [Path(name) if Path(name).is_dir() else Path(config.run.directory) / name for name in options.names]
    for directory in directories:
        if not (directory / "results.json").is_file():
            raise ConfigError(f"{directory}: no run with results in it (results.json)")
    if len(directories) < 2:
        raise ConfigError("compare: name at least two runs, as folders or as names under run.directory")
    from srl.evaluation.compare import align, comparison_table, paired_tests, run_names, sentences
    from srl.evaluation.report.comparison import write_comparison
    from srl.evaluation.report.files import read_run
    from srl.observe.run_directory import make_folder

    if Path(options.output).is_dir():
        raise ConfigError(f"--output {options.output}: is a folder; name a file")
    make_folder("--output", Path(options.output).parent)
    rows = [read_run(directory).rows for directory in directories]
    print(" / ".join(run_names(directories)), comparison_table(rows), sep="\n\n", end="\n\n")
    print(*sentences(paired_tests(directories, align(rows))), sep="\n")
    print(f"page: {write_comparison(directories, Path(options.output))}")
