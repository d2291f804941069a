"""Measured rows beside the paper's, as Markdown. Pure functions."""

import statistics
from collections.abc import Sequence
from typing import Any

from srl.evaluation.paper import INDEPENDENT_AT, SAMPLES_PER_TRAJECTORY, SELF_REWARDING_AT, Table

NAMES = {
    "turn1": "turn 1", "final": "final", "delta": "delta", "i2c": "i->c", "c2i": "c->i", "p_c2i": "p(c->i)",
    "verdict_correct": "verdict C", "verdict_wrong": "verdict W",
}  # fmt: skip
Measured = Sequence[dict[str, Any]]


def side_by_side(table: Table, measured: Sequence[Measured], benchmark: str) -> str:
    """One line per row of the table: here (mean, and deviation over seeds if there are several), then the paper's."""
    there = any(row.paper for row in table.rows)
    titles = [f"{NAMES[column]}" for column in table.columns] + [f"paper: {NAMES[c]}" for c in table.columns if there]
    if there:
        titles = titles[: len(table.columns) + max(len(row.paper) for row in table.rows)]
    lines = [f"**{table.title}; here {benchmark}**", "", line(["method", *titles]), "|---" * (1 + len(titles)) + "|"]
    for row, rows in zip(table.rows, measured, strict=True):
        ours = [spread([found.get(column) for found in rows], signed=column == "delta") for column in table.columns]
        paper = [shown(value, signed=column == "delta") for column, value in zip(table.columns, row.paper, strict=False)]
        lines.append(line([row.label, *ours, *(paper + ["-"] * len(titles))[: len(titles) - len(ours)]]))
    lines += ["", f"The paper's finding: {table.finding}."]
    return "\n".join(lines + ([f"Left out: {table.left_out}."] if table.left_out else []))


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float | None], *, signed: bool) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    mean = shown(statistics.mean(there), signed=signed)
    return f"{mean} ± {statistics.stdev(there):.1f}" if len(there) > 1 else mean


def shown(value: float | None, *, signed: bool) -> str:
    return "-" if value is None else format(value, "+.1f" if signed else ".1f")


def figure_1(lines: Sequence[dict[str, Any]]) -> str:
    """Turn-1 and final accuracy in validation over RL steps, from a run's metrics. Raises ValueError if there are none."""
    points = {found["step"]: found for found in lines if found.get("phase") == "rl-validation"}
    if not points:
        raise ValueError("metrics.jsonl has no validation during RL")
    table = [line(["RL step", "turn 1", "final", "gap"]), "|---|---|---|---|"]
    for step, found in sorted(points.items()):
        gap = found["final"] - found["turn1"]
        table.append(line([str(step), f"{found['turn1']:.1f}", f"{found['final']:.1f}", f"{gap:+.1f}"]))
    finding = "The paper's finding: both rise, then the gap narrows."
    return "\n".join(["**Figure 1: accuracy over RL steps (validation)**", "", *table, "", finding])


def figure_2(rows: Sequence[dict[str, Any]]) -> str:
    """maj@n against answers used: whole trajectories and independent first attempts of the same model, and the paper's claim."""
    table = [
        line(["method", "n", "answers used", "maj@n", "best of n", "weighted", "stop at “correct” (used)", "independent maj@n"]),
        "|---" * 8 + "|",
    ]  # fmt: skip
    for row in rows:
        found = row["scaling"]
        for place, n in enumerate(found["n"]):
            right, used = found["early_stop"][place]
            numbers = [f"{found[key][place]:.1f}" for key in ("maj", "best_of", "weighted")]
            cells = [row["method"], str(n), f"{found['answers'][place]:.1f}", *numbers, f"{right:.1f} ({used:.1f})"]
            table.append(line([*cells, f"{found['independent'][place]:.1f}"]))
    matched = [point for row in rows for point in row["scaling"]["matched"][-1:]]
    equal = "; ".join(
        f"{row['method']} at {point['budget']:.0f} tokens per problem: {point['self_rewarding'][0]:.1f} with whole trajectories, "
        f"{point['independent'][0]:.1f} with independent attempts"
        for row, point in zip(rows, matched, strict=True)
    )
    paper = (
        f"The paper, MATH: {SELF_REWARDING_AT[1]} with {SELF_REWARDING_AT[0]} answers against {INDEPENDENT_AT[1]} with "
        f"{INDEPENDENT_AT[0]:.0f} independent ones; {SAMPLES_PER_TRAJECTORY['MATH']} answers per trajectory."
    )
    return "\n".join(["**Figure 2: majority vote against answers used**", "", *table, "", f"At equal tokens: {equal}.", paper])
