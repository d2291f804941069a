"""Measured rows beside the paper's, as Markdown. Pure functions."""

import statistics
from collections.abc import Sequence
from typing import Any

from srl.evaluation.paper import INDEPENDENT_AT, SAMPLES_PER_TRAJECTORY, SELF_REWARDING_AT, Claim, Table

NAMES = {
    "turn1": "turn 1", "final": "final", "delta": "delta", "i2c": "i->c", "c2i": "c->i", "p_c2i": "p(c->i)",
    "verdict_correct": "verdict C", "verdict_wrong": "verdict W",
}  # fmt: skip
Measured = Sequence[dict[str, Any]]


def side_by_side(table: Table, measured: Sequence[Measured], benchmark: str) -> str:
    """One line per row of the table: here (mean, and range if there are several), then the paper's; then the paper's claims."""
    there = any(row.paper for row in table.rows)
    titles = [f"{NAMES[column]}" for column in table.columns] + [f"paper: {NAMES[c]}" for c in table.columns if there]
    if there:
        titles = titles[: len(table.columns) + max(len(row.paper) for row in table.rows)]
    lines = [f"**{table.title}; here {benchmark}**", "", line(["method", *titles]), "|---" * (1 + len(titles)) + "|"]
    for row, rows in zip(table.rows, measured, strict=True):
        ours = [spread([found.get(column) for found in rows], signed=column == "delta") for column in table.columns]
        paper = [shown(value, signed=column == "delta") for column, value in zip(table.columns, row.paper, strict=False)]
        lines.append(line([row.label, *ours, *(paper + ["-"] * len(titles))[: len(titles) - len(ours)]]))
    by_label = {row.label: rows for row, rows in zip(table.rows, measured, strict=True)}
    return "\n".join(
        [*lines, "", "What the paper found, and what came out here:", ""] + [verdict(c, by_label) for c in table.claims]
    )


def verdict(claim: Claim, measured: dict[str, Measured]) -> str:
    """Whether the direction is there in the mean, over the seeds that have all of its rows, and in how many of them."""
    columns = claim.column, claim.lower_column or claim.column
    seeds = range(len(measured[claim.higher[0]]))
    sides = [
        [mean_of([measured[label][seed].get(column) for label in labels]) for seed in seeds]
        for labels, column in zip((claim.higher, claim.lower), columns, strict=True)
    ]
    pairs = [(high, low) for high, low in zip(*sides, strict=True) if high is not None and low is not None]
    if not pairs:
        return f"- not measured: {claim.text}"
    high, low = (statistics.mean(values) for values in zip(*pairs, strict=True))
    count = f", in {sum(first > second for first, second in pairs)} of {len(pairs)} seeds" if len(seeds) > 1 else ""
    names = NAMES[columns[0]] if columns[0] == columns[1] else f"{NAMES[columns[0]]} and {NAMES[columns[1]]}"
    return f"- {'as there' if high > low else 'NOT SO HERE'}: {claim.text}: {names} {high:.1f} against {low:.1f}{count}"


def mean_of(values: Sequence[float | None]) -> float | None:
    """None if any of them is."""
    return None if None in values else statistics.mean(values)


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float | None], *, signed: bool) -> str:
    """Mean, and in brackets the least and the most of several."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    mean, least, most = (shown(value, signed=signed) for value in (statistics.mean(there), min(there), max(there)))
    return f"{mean} [{least}, {most}]" if len(there) > 1 else mean


def shown(value: float | None, *, signed: bool) -> str:
    return "-" if value is None else format(value, "+.1f" if signed else ".1f")


def figure_1(runs: Sequence[dict[int, dict[str, Any]]]) -> str:
    """Turn-1 and final accuracy in validation by RL step, of one run or several; steps that all of them have."""
    table = [line(["RL step", "turn 1", "final", "gap"]), "|---|---|---|---|"]
    for step in sorted(set.intersection(*(set(points) for points in runs))):
        found = [points[step] for points in runs]
        gaps = [point["final"] - point["turn1"] for point in found]
        first, final = (spread([point[name] for point in found], signed=False) for name in ("turn1", "final"))
        table.append(line([str(step), first, final, spread(gaps, signed=True)]))
    finding = "The paper's finding: both rise, then the gap narrows."
    return "\n".join(["**Figure 1: accuracy over RL steps (PPO, validation)**", "", *table, "", finding])


def figure_2(rows: Sequence[dict[str, Any]]) -> str:
    """maj@n against answers used, means over the rows: whole trajectories and independent first attempts of the same model."""
    table = [
        line(["n", "answers used", "maj@n", "best of n", "weighted", "stop at “correct” (used)", "independent maj@n"]),
        "|---" * 7 + "|",
    ]
    found = [row["scaling"] for row in rows]
    for place, n in enumerate(found[0]["n"]):
        used, *numbers = (
            statistics.mean(one[key][place] for one in found) for key in ("answers", "maj", "best_of", "weighted", "independent")
        )
        right, stopped = (statistics.mean(one["early_stop"][place][side] for one in found) for side in (0, 1))
        *numbers, alone = (f"{number:.1f}" for number in numbers)
        table.append(line([str(n), f"{used:.1f}", *numbers, f"{right:.1f} ({stopped:.1f})", alone]))
    equal = equal_tokens([point for one in found for point in one["matched"][-1:]])
    paper = (
        f"The paper, MATH: {SELF_REWARDING_AT[1]} with {SELF_REWARDING_AT[0]} answers against {INDEPENDENT_AT[1]} with "
        f"{INDEPENDENT_AT[0]:.0f} independent ones; {SAMPLES_PER_TRAJECTORY['MATH']} answers per trajectory."
    )
    return "\n".join(["**Figure 2: majority vote against answers used, self-rewarding IFT**", "", *table, "", equal, paper])


def equal_tokens(points: Sequence[dict[str, Any]]) -> str:
    """The largest budget that both sides could spend, means over rows."""
    if not points:
        return "The samples are too few for a comparison at equal tokens."
    whole, apart, budget = (
        statistics.mean(values)
        for values in zip(*((p["self_rewarding"][0], p["independent"][0], p["budget"]) for p in points), strict=True)
    )
    trajectories, attempts = (statistics.mean(p[side][2] for p in points) for side in ("self_rewarding", "independent"))
    return (
        f"At {budget:.0f} tokens per problem: {whole:.1f} with {trajectories:.1f} whole trajectories, {apart:.1f} with "
        f"{attempts:.1f} independent attempts."
    )
