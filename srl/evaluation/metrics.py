"""The paper's metrics over graded trajectories (paper.md, "Metrics"). Pure functions; every share is in per cent, 0-100.

Graded means that every attempt and revision has an `outcome`; anything else raises.
"""

import textwrap
from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

RIGHT_RIGHT, RIGHT_WRONG, WRONG_RIGHT, WRONG_WRONG = "right->right", "right->wrong", "wrong->right", "wrong->wrong"
TRANSITIONS = (RIGHT_RIGHT, RIGHT_WRONG, WRONG_RIGHT, WRONG_WRONG)
FORMAT_FAILURES = (StopReason.NO_VERDICT, StopReason.NO_REVISION, StopReason.LENGTH)


def summarise(
    trajectories: list[Trajectory], *, method: str, benchmark: str, temperature: float, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """One row of the results table.

    `n` counts distinct problems; shares (per cent, two decimals) and means are over trajectories, so a problem with more
    samples weighs more. `delta` = final - turn1 = i2c - c2i, exact before rounding. `verdict_correct` and `verdict_wrong`
    are the shares of right verdicts on correct and on wrong answers, None where there is no such verdict.
    `final_ci95` is the percentile interval of `bootstrap` resamples of problems. Raises ValueError if the list is empty.
    """
    if not trajectories:
        raise ValueError(f"no trajectories to summarise for method {method!r} on benchmark {benchmark!r}")
    total = len(trajectories)
    counts = transition_counts(trajectories)
    i2c, c2i = counts[WRONG_RIGHT], counts[RIGHT_WRONG]
    verdicts = [pair for trajectory in trajectories for pair in judged(trajectory)]
    failures = sum(trajectory.stop_reason in FORMAT_FAILURES for trajectory in trajectories)
    low, high = bootstrap_interval(accuracy_by_problem(trajectories), bootstrap, seed)
    return {
        "method": method,
        "benchmark": benchmark,
        "n": len({trajectory.prompt_id for trajectory in trajectories}),
        "temperature": temperature,
        "turn1": percent(counts[RIGHT_RIGHT] + c2i, total),
        "final": percent(counts[RIGHT_RIGHT] + i2c, total),
        "delta": percent(i2c - c2i, total),
        "i2c": percent(i2c, total),
        "c2i": percent(c2i, total),
        "verdict_correct": agreement(verdicts, on_right=True),
        "verdict_wrong": agreement(verdicts, on_right=False),
        "format_failures": percent(failures, total),
        "samples_per_trajectory": round(sum(len(trajectory.answers()) for trajectory in trajectories) / total, 2),
        "tokens_per_trajectory": round(sum(trajectory.sampled_tokens() for trajectory in trajectories) / total, 2),
        "final_ci95": [round(100 * low, 2), round(100 * high, 2)],
    }


def percent(count: int, total: int) -> float:
    return round(100 * count / total, 2)


def is_right(turn: Turn | None) -> bool:
    """Whether an attempt or revision was graded correct; no answer turn at all (None) is not right."""
    if turn is None:
        return False
    if turn.outcome is None:
        raise ValueError(f"ungraded {turn.kind}: its outcome is None (answer {turn.answer!r})")
    return turn.outcome is Outcome.CORRECT


def transition(trajectory: Trajectory) -> str:
    """First attempt -> the answer that counts, as one of `TRANSITIONS`."""
    first = next(iter(trajectory.answers()), None)
    sides = ("right" if is_right(turn) else "wrong" for turn in (first, trajectory.final()))
    return "->".join(sides)


def transition_counts(trajectories: list[Trajectory]) -> dict[str, int]:
    """Trajectories per transition; all four keys, adding up to the number of trajectories."""
    counts = Counter(map(transition, trajectories))
    return {name: counts[name] for name in TRANSITIONS}


def judged(trajectory: Trajectory) -> list[tuple[bool, Verdict | None]]:
    """(was the answer just before it right, what the verdict said) for every verdict turn that follows an answer.

    A verdict turn that broke the format says None, which agrees with nothing.
    """
    pairs: list[tuple[bool, Verdict | None]] = []
    answer: Turn | None = None
    for turn in trajectory.turns:
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            answer = turn
        elif turn.kind is TurnKind.VERDICT and answer is not None:
            pairs.append((is_right(answer), turn.verdict))
    return pairs


def agreement(verdicts: list[tuple[bool, Verdict | None]], *, on_right: bool) -> float | None:
    """Per cent of the verdicts on right (or on wrong) answers that say so; None if there is none."""
    said = [verdict for right, verdict in verdicts if right is on_right]
    truth = Verdict.CORRECT if on_right else Verdict.WRONG
    return percent(said.count(truth), len(said)) if said else None


def accuracy_by_problem(trajectories: list[Trajectory]) -> np.ndarray:
    """Share (0-1) of right final answers per problem, in order of first appearance; shape (problems,)."""
    groups: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.prompt_id, []).append(is_right(trajectory.final()))
    return np.array([sum(group) / len(group) for group in groups.values()])


def bootstrap_interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the mean of `values` (shape (problems,)) over resamples with replacement."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def outcome_counts(trajectories: list[Trajectory]) -> dict[str, int]:
    """How often the grader said what, over all attempts and revisions; all five outcomes are keys."""
    counts = Counter(turn.outcome for trajectory in trajectories for turn in trajectory.answers())
    if None in counts:
        raise ValueError(f"{counts[None]} of {counts.total()} answers are ungraded: their outcome is None")
    return {outcome.value: counts[outcome] for outcome in Outcome}


def stop_counts(trajectories: list[Trajectory]) -> dict[str, int]:
    """Trajectories per stop reason; all reasons are keys, and "unfinished" too if a trajectory has none yet."""
    counts = Counter(trajectory.stop_reason for trajectory in trajectories)
    named = {reason.value: counts[reason] for reason in StopReason}
    return named | ({"unfinished": counts[None]} if counts[None] else {})


HEADER = (
    ("", "method"), ("", "benchmark"), ("turn", "1"), ("final", "[95 % CI]"), ("", "delta"), ("", "i->c"), ("", "c->i"),
    ("verd.", "C"), ("verd.", "W"), ("", "format"), ("", "samples"), ("", "tokens"),
)  # fmt: skip


def format_table(rows: list[dict[str, Any]], width: int = 110) -> str:
    """Rows of `summarise` as aligned plain text of at most `width` columns; long names wrap, None is "-"."""
    cells = [table_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, *zip(*HEADER, strict=True), strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    for column in (0, 1):
        excess = sum(widths) + len(gap) * (len(widths) - 1) - width
        widths[column] = max(min(widths[column], 12), widths[column] - max(excess, 0))
    lines = [line for header in zip(*HEADER, strict=True) for line in aligned(list(header), widths, gap)]
    lines.append("-" * (sum(widths) + len(gap) * (len(widths) - 1)))
    return "\n".join(lines + [line for row in cells for line in aligned(row, widths, gap)])


def table_cells(row: dict[str, Any]) -> list[str]:
    def number(key: str, form: str = ".1f") -> str:
        return "-" if row[key] is None else format(row[key], form)

    low, high = row["final_ci95"]
    return [
        row["method"], row["benchmark"], number("turn1"), f"{number('final')} [{low:.1f},{high:.1f}]", number("delta", "+.1f"),
        number("i2c"), number("c2i"), number("verdict_correct"), number("verdict_wrong"), number("format_failures"),
        number("samples_per_trajectory", ".2f"), number("tokens_per_trajectory", ".0f"),
    ]  # fmt: skip


def aligned(cells: list[str], widths: list[int], gap: str) -> list[str]:
    """One table row as text lines: names left and wrapped, numbers right and on the first line."""
    wrap = partial(textwrap.wrap, break_on_hyphens=False)
    names = [wrap(cell, width) or [""] for cell, width in zip(cells[:2], widths[:2], strict=True)]
    lines = []
    for index in range(max(map(len, names))):
        left = [(name[index] if index < len(name) else "").ljust(width) for name, width in zip(names, widths[:2], strict=True)]
        right = [(cell if index == 0 else "").rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        lines.append(gap.join(left + right).rstrip())
    return lines
