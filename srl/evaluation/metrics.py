"""The paper's metrics over graded trajectories (paper.md, "Metrics"). Pure functions; every share is in per cent, 0-100.

Graded means that every attempt and revision has an `outcome`; anything else raises.
"""

from collections import Counter
from typing import Any

import numpy as np

from srl.evaluation.change import answer_changed, edit_ratio
from srl.evaluation.intervals import bootstrap, interval, mcnemar, ratio
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

RIGHT_RIGHT, RIGHT_WRONG, WRONG_RIGHT, WRONG_WRONG = "right->right", "right->wrong", "wrong->right", "wrong->wrong"
TRANSITIONS = (RIGHT_RIGHT, RIGHT_WRONG, WRONG_RIGHT, WRONG_WRONG)
FORMAT_FAILURES = (StopReason.NO_VERDICT, StopReason.NO_REVISION, StopReason.LENGTH, StopReason.TOKENS, StopReason.TIME)
LAST_WORD = {StopReason.ACCEPTED: Verdict.CORRECT, StopReason.REJECTED: Verdict.WRONG}  # a judge's, on the last answer


def summarise(
    trajectories: list[Trajectory], *, method: str, benchmark: str, temperature: float, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """One row of the results table.

    `n` counts distinct problems; shares (per cent, two decimals) and means are over trajectories, so a problem with more
    samples weighs more. `delta` = final - turn1 = i2c - c2i, exact before rounding. `verdict_correct` and `verdict_wrong`
    are the shares of right verdicts on correct and on wrong answers, None where there is no such verdict; `verdicts` has the
    rest of what follows from their counts. CL, CS and RSS: `confidence_critique`. `ci95` holds 95 % intervals by `bootstrap`
    resamples of problems, `final_ci95` that of `final`; `mcnemar_p` tests turn 1 against final (`changes_p`). Raises ValueError
    if the list is empty.
    """
    if not trajectories:
        raise ValueError(f"no trajectories to summarise for method {method!r} on benchmark {benchmark!r}")
    total = len(trajectories)
    counts = transition_counts(trajectories)
    i2c, c2i = counts[WRONG_RIGHT], counts[RIGHT_WRONG]
    verdicts = confusion(trajectories)
    by_problem = problem_counts(trajectories)
    bounds = intervals(by_problem, bootstrap, seed)
    failures = sum(trajectory.stop_reason in FORMAT_FAILURES for trajectory in trajectories)
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
        "verdict_correct": share(verdicts["right"]["correct"], sum(verdicts["right"].values())),
        "verdict_wrong": share(verdicts["wrong"]["wrong"], sum(verdicts["wrong"].values())),
        "format_failures": percent(failures, total),
        "samples_per_trajectory": round(sum(len(trajectory.answers()) for trajectory in trajectories) / total, 2),
        "tokens_per_trajectory": round(sum(trajectory.sampled_tokens() for trajectory in trajectories) / total, 2),
        **confidence_critique(counts),
        "answer_change": percent(sum(map(answer_changed, trajectories)), total),
        "edit_ratio": mean_edit_ratio(trajectories),
        "mcnemar_p": changes_p(by_problem),
        "ci95": bounds,
        "final_ci95": bounds["final"],
        "trajectories": total,
        "transitions": counts,
        "verdicts": verdicts | verdict_scores(verdicts),
        "rounds": rounds_histogram(trajectories),
        "by_turn": accuracy_by_turn(trajectories),
        "stops": stop_counts(trajectories),
        "outcomes": outcome_counts(trajectories),
    }


def percent(count: int, total: int) -> float:
    return round(100 * count / total, 2)


def share(count: int, total: int) -> float | None:
    """Per cent, or None of nothing."""
    return percent(count, total) if total else None


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


def confidence_critique(transitions: dict[str, int]) -> dict[str, float | None]:
    """Confidence level, critique score and relative self-correction score (arXiv 2412.19513), the first two in per cent.

    CL = P(final right | first right), CS = P(final right | first wrong), so final = turn1 CL + (1 - turn1) CS.
    RSS = (final - turn1^2) / (2 turn1 (1 - turn1)): 0.5 when correcting changes nothing. None: nothing to divide by.
    """
    first = transitions[RIGHT_RIGHT] + transitions[RIGHT_WRONG]
    others = transitions[WRONG_RIGHT] + transitions[WRONG_WRONG]
    total = first + others
    accuracy, final = first / total, (transitions[RIGHT_RIGHT] + transitions[WRONG_RIGHT]) / total
    spread = 2 * accuracy * (1 - accuracy)
    return {
        "cl": share(transitions[RIGHT_RIGHT], first),
        "cs": share(transitions[WRONG_RIGHT], others),
        "rss": round((final - accuracy**2) / spread, 4) if spread else None,
    }


def judged(trajectory: Trajectory) -> list[tuple[bool, Verdict | None]]:
    """(was the answer just before it right, what was said of it) for every verdict on an answer.

    A verdict is a turn of the model, where one that broke the format says None, which agrees with nothing; or that of a judge
    outside: what the model was told, and at the end ACCEPTED or REJECTED.
    """
    pairs: list[tuple[bool, Verdict | None]] = []
    answer: Turn | None = None
    for turn in trajectory.turns:
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            answer = turn
        elif answer is not None and (turn.kind is TurnKind.VERDICT or turn.verdict is not None):
            pairs.append((is_right(answer), turn.verdict))
    if answer is not None and trajectory.stop_reason in LAST_WORD:
        pairs.append((is_right(answer), LAST_WORD[trajectory.stop_reason]))
    return pairs


def confusion(trajectories: list[Trajectory]) -> dict[str, dict[str, int]]:
    """Verdicts on right and on wrong answers, by what they said: `found["wrong"]["correct"]` is wrong answers called correct."""
    pairs = Counter(pair for trajectory in trajectories for pair in judged(trajectory))
    said = {"correct": Verdict.CORRECT, "wrong": Verdict.WRONG, "nothing": None}
    return {
        name: {word: pairs[right, verdict] for word, verdict in said.items()}
        for name, right in (("right", True), ("wrong", False))
    }


def verdict_scores(found: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Accuracy and balanced accuracy of verdicts, and precision, recall and F1 of either word; per cent, None of nothing.

    Recall of "wrong" (verdict_wrong of the row) is what decides whether anything gets corrected. A verdict that says nothing
    lowers recall and accuracy and no precision. Balanced accuracy is the mean of both recalls.
    """
    right, wrong = found["right"], found["wrong"]
    scores: dict[str, Any] = {
        "accuracy": share(right["correct"] + wrong["wrong"], sum(right.values()) + sum(wrong.values())),
    }
    recalls = []
    for word, truth in (("correct", right), ("wrong", wrong)):
        hits, said, there = truth[word], right[word] + wrong[word], sum(truth.values())
        # F1 = 2 hits / (said + there), the harmonic mean of precision and recall.
        scores[f"of_{word}"] = {
            "precision": share(hits, said), "recall": share(hits, there), "f1": share(2 * hits, said + there)
        }  # fmt: skip
        recalls += [100 * hits / there] if there else []
    scores["balanced_accuracy"] = round(sum(recalls) / 2, 2) if len(recalls) == 2 else None
    return scores


def mean_edit_ratio(trajectories: list[Trajectory]) -> float | None:
    """Mean `edit_ratio` of first attempt and last answer over trajectories with a revision; None without any."""
    ratios = []
    for trajectory in trajectories:
        answers = trajectory.answers()
        if len(answers) > 1:
            ratios.append(edit_ratio(answers[0].token_ids, answers[-1].token_ids))
    return round(sum(ratios) / len(ratios), 4) if ratios else None


def rounds_histogram(trajectories: list[Trajectory]) -> dict[str, int]:
    """Number of revisions -> trajectories, from "0" up."""
    counts = Counter(max(0, len(trajectory.answers()) - 1) for trajectory in trajectories)
    return {str(rounds): counts[rounds] for rounds in range(max(counts) + 1)}


def accuracy_by_turn(trajectories: list[Trajectory]) -> list[float]:
    """Per cent right after turn 1, 2, ...: what `final` would be if every trajectory ended there."""
    most = max([1, *(len(trajectory.answers()) for trajectory in trajectories)])
    return [
        percent(sum(is_right(standing_answer(trajectory, turns)) for trajectory in trajectories), len(trajectories))
        for turns in range(1, most + 1)
    ]


def standing_answer(trajectory: Trajectory, turns: int) -> Turn | None:
    """As `Trajectory.final`, of the first `turns` answers."""
    answers = trajectory.answers()[:turns]
    return ([turn for turn in answers if turn.answer is not None] or answers or [None])[-1]


COUNTED = ("total", "first", "final", "gained", "lost", "right_called", "right_judged", "wrong_called", "wrong_judged")


def problem_counts(trajectories: list[Trajectory]) -> np.ndarray:
    """`COUNTED` per problem, problems in the order of their ids; shape (problems, 9)."""
    groups: dict[str, np.ndarray] = {}
    for trajectory in trajectories:
        change, pairs = transition(trajectory), judged(trajectory)
        on_right = [verdict for right, verdict in pairs if right]
        on_wrong = [verdict for right, verdict in pairs if not right]
        counts = [
            1, change.startswith("right"), change.endswith("right"), change == WRONG_RIGHT, change == RIGHT_WRONG,
            on_right.count(Verdict.CORRECT), len(on_right), on_wrong.count(Verdict.WRONG), len(on_wrong),
        ]  # fmt: skip
        groups[trajectory.prompt_id] = groups.get(trajectory.prompt_id, 0) + np.array(counts, dtype=float)
    return np.stack([groups[key] for key in sorted(groups)])


def changes_p(counts: np.ndarray) -> float:
    """Of `problem_counts`: exact p of as many problems gaining as losing by what comes after turn 1. With one trajectory per
    problem McNemar's test; with several, which are not independent, the sign test over problems."""
    net = counts[:, COUNTED.index("gained")] - counts[:, COUNTED.index("lost")]
    return mcnemar(int((net > 0).sum()), int((net < 0).sum()))


def intervals(counts: np.ndarray, resamples: int, seed: int) -> dict[str, list[float] | None]:
    """95 % intervals of the row's shares from `problem_counts`; None where a resample has nothing to divide by."""
    sums = dict(zip(COUNTED, bootstrap(counts, resamples, seed).T, strict=True))
    total = sums["total"]
    return {
        "turn1": interval(ratio(sums["first"], total)),
        "final": interval(ratio(sums["final"], total)),
        "delta": interval(ratio(sums["final"] - sums["first"], total)),
        "i2c": interval(ratio(sums["gained"], total)),
        "c2i": interval(ratio(sums["lost"], total)),
        "verdict_correct": interval(ratio(sums["right_called"], sums["right_judged"])),
        "verdict_wrong": interval(ratio(sums["wrong_called"], sums["wrong_judged"])),
        "cl": interval(ratio(sums["first"] - sums["lost"], sums["first"])),
        "cs": interval(ratio(sums["gained"], total - sums["first"])),
    }


def right_by_problem(trajectories: list[Trajectory]) -> dict[str, tuple[int, int]]:
    """(right final answers, trajectories) per problem id."""
    found: dict[str, tuple[int, int]] = {}
    for trajectory in trajectories:
        right, total = found.get(trajectory.prompt_id, (0, 0))
        found[trajectory.prompt_id] = right + is_right(trajectory.final()), total + 1
    return found


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
