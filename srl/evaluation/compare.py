"""Runs side by side: rows of the same method and benchmark, means over runs, paired tests. Only reading files is impure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srl.evaluation.cell import read_counted
from srl.evaluation.intervals import compare_paired
from srl.evaluation.metrics import right_by_problem
from srl.evaluation.names import shortest

Row = dict[str, Any]
COLUMNS = ("turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong", "format_failures")


def align(runs: Sequence[Sequence[Row]]) -> dict[tuple[str, str], list[Row | None]]:
    """(method, benchmark) -> the row of every run, None where it has none; in the order of first appearance."""
    keys = list(dict.fromkeys((row["method"], row["benchmark"]) for rows in runs for row in rows))
    by_run = [{(row["method"], row["benchmark"]): row for row in rows} for rows in runs]
    return {key: [rows.get(key) for rows in by_run] for key in keys}


def run_names(directories: Sequence[Path]) -> list[str]:
    """Their folders' names, with as many of the folders above as tell them apart."""
    taken: dict[str, str] = {}
    return [shortest(path.resolve().parts[1:], str(path.resolve()), taken) for path in directories]


def spread(rows: Sequence[Row | None], column: str) -> tuple[float, float] | None:
    """Mean and standard deviation (n - 1) over the runs that have the number; None if fewer than two have."""
    values = [row[column] for row in rows if row is not None and row.get(column) is not None]
    return (statistics.mean(values), statistics.stdev(values)) if len(values) > 1 else None


def paired_tests(directories: Sequence[Path], aligned: dict[tuple[str, str], list[Row | None]]) -> list[Row]:
    """The first run against each other one, per method and benchmark, on the problems that both solved or failed.

    Needs the kept trajectories of both runs; rows without them are left out.
    """
    found, named = [], run_names(directories)
    for (method, benchmark), rows in aligned.items():
        answers = [problem_answers(directory, row) for directory, row in zip(directories, rows, strict=True)]
        for name, other in zip(named[1:], answers[1:], strict=True):
            if answers[0].keys() & other.keys():
                names = {"method": method, "benchmark": benchmark, "first": named[0], "second": name}
                found.append(names | compare_paired(answers[0], other))
    return found


def compare_within(directory: Path, rows: Sequence[Row]) -> list[Row]:
    """The first row of each benchmark against each other one of it, by the kept trajectories of one run."""
    found = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        first, *others = [row for row in rows if row["benchmark"] == benchmark]
        before = problem_answers(directory, first)
        for row in others:
            after = problem_answers(directory, row)
            if before.keys() & after.keys():
                names = {"method": "final answers", "benchmark": benchmark, "first": first["method"], "second": row["method"]}
                found.append(names | compare_paired(before, after))
    return found


def problem_answers(directory: Path, row: Row | None) -> dict[str, tuple[int, int]]:
    if row is None or "evaluation" not in row:
        return {}
    return right_by_problem(list(read_counted(directory / "evaluations" / row["evaluation"]).values()))


def comparison_table(runs: Sequence[Sequence[Row]]) -> str:
    """Markdown: one line per method with the values of every run, and, of three or more, mean ± standard deviation."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for (method, benchmark), rows in align(runs).items():
        cells = [" / ".join(shown(row and row.get(column)) for row in rows) for column in COLUMNS]
        if len(rows) > 2:
            cells = [cell + mean_and_deviation(rows, column) for cell, column in zip(cells, COLUMNS, strict=True)]
        lines.append(f"| {method} · {benchmark} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_deviation(rows: Sequence[Row | None], column: str) -> str:
    found = spread(rows, column)
    return "" if found is None else f" ({found[0]:.1f} ± {found[1]:.1f})"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def sentences(tests: Sequence[Row]) -> list[str]:
    """One sentence per paired test."""
    return [
        f"{test['method']} on {test['benchmark']}: {test['second']} against {test['first']} {test['difference']:+.1f} points "
        f"[{test['ci95'][0]:+.1f}, {test['ci95'][1]:+.1f}] on {test['problems']} problems, "
        f"{test['better']} better, {test['worse']} worse, p = {test['p']:.3g}"
        for test in tests
    ]
