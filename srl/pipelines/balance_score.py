"""B-STaR's balance score (arXiv 2412.17256): enough different right samples, and little else, among those selected.

What selects is the model's own judgement: the share of an attempt's verdicts that say "correct". What is right is the grader's.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from srl.pipelines.classes import Row
from srl.trajectory import Outcome, TurnKind, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """An attempt: its text, whether it is right, and the share (0-1) of its verdicts with format that say "correct"."""

    text: str
    right: bool
    share: float


def balance_score(attempts: Sequence[Judged], threshold: float, wanted: int) -> float:
    """min(n' / wanted, 1) * n' / n of one problem, with n attempts selected and n' of them right and different; 0 if n is 0."""
    selected = [attempt for attempt in attempts if attempt.share >= threshold]
    different = len({attempt.text for attempt in selected if attempt.right})
    return min(different / wanted, 1.0) * different / len(selected) if selected else 0.0


def judged_attempts(rows: Sequence[Row]) -> list[Judged]:
    """The attempts among one problem's samples. One whose verdicts are all without format has share 0."""
    said: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["kind"] == TurnKind.VERDICT and row["verdict"] is not None:
            said[row["parent"]].append(row["verdict"] == Verdict.CORRECT)
    attempts = [row for row in rows if row["kind"] == TurnKind.ATTEMPT]
    return [
        Judged(row["text"], row["outcome"] == Outcome.CORRECT, sum(said[row["id"]]) / max(1, len(said[row["id"]])))
        for row in attempts
    ]
