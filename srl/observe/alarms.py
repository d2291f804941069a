"""Signs that a policy goes astray, each seen in published runs: pure functions of the metrics of the steps so far."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from srl.pipelines.filters import first_right
from srl.trajectory import Trajectory, Verdict

Step = dict[str, Any]
WINDOW = 3  # steps that are averaged before anything is said
CLEAR = 3  # standard errors of a difference that is no noise: every step of a long run looks once


def behaviour(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Per cent of verdicts that say "correct", of revised answers that differ from the first, of truncated trajectories."""
    verdicts = [turn.verdict for trajectory in trajectories for turn in trajectory.verdicts() if turn.verdict]
    revised = [trajectory.answers() for trajectory in trajectories if len(trajectory.answers()) > 1]
    shares = {
        "verdict_yes": [verdict is Verdict.CORRECT for verdict in verdicts],
        "answer_changed": [answers[0].answer != answers[-1].answer for answers in revised],
        "truncated": [trajectory.truncated for trajectory in trajectories],
    }
    return {name: 100 * sum(values) / len(values) for name, values in shares.items() if values}


def error_by_problem(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`turn1_error`: the standard error of the per cent of first attempts that are right, over problems: attempts at one problem
    are alike. None for a single problem, which tells nothing of others."""
    by_problem: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        by_problem.setdefault(trajectory.prompt_id, []).append(first_right(trajectory))
    means = [statistics.fmean(right) for right in by_problem.values()]
    return {"turn1_error": 100 * statistics.stdev(means) / math.sqrt(len(means))} if len(means) > 1 else {}


def error(steps: Sequence[Step], name: str) -> float:
    """Of the mean over these steps, from that of each; without limit where one has none."""
    return math.sqrt(sum(step.get(name, math.inf) ** 2 for step in steps)) / len(steps)


def mean(steps: Sequence[Step], name: str) -> float | None:
    values = [step[name] for step in steps if name in step]
    return sum(values) / len(values) if values else None


def rose(factor: float, least: float) -> Callable[[float, float], bool]:
    return lambda first, now: now >= least and now > factor * first


# Name: (metric, when a mean over the last steps is bad, given the first steps' mean; what it means)
SIMPLE: dict[str, tuple[str, Callable[[float, float], bool], str]] = {
    "answers_stay": ("answer_changed", lambda first, now: now < 2 and first >= 10, "revisions no longer change the answer"),
    "no_signal": ("silent_share", lambda first, now: now > 60, "more than 60 % of the groups have equal rewards"),
    "entropy_collapse": ("entropy", lambda first, now: now < 0.2 * first, "the entropy fell below a fifth of its first value"),
    "kl_runaway": ("kl", rose(5, 0.2), "the KL to the reference is above 0.2 nats per token and five times its first value"),
    "length_explosion": ("tokens_per_trajectory", rose(2, 0), "trajectories are more than twice as long as at first"),
    "truncation": ("truncated", rose(2, 5), "more than 5 % of the trajectories run out of tokens, twice as many as at first"),
}


def remember(history: list[Step], step: Step) -> None:
    """Append a step. Of the others only those are kept that `alarms` looks at: a run of 100,000 steps must not hold them all."""
    history.append(step)
    del history[WINDOW:-WINDOW]


def alarms(history: Sequence[Step]) -> dict[str, str]:
    """Name -> sentence for everything wrong with the last `WINDOW` steps; nothing before there are twice as many."""
    if len(history) < 2 * WINDOW:
        return {}
    first, last = history[:WINDOW], history[-WINDOW:]
    found = {}
    for name, (metric, bad, meaning) in SIMPLE.items():
        before, now = mean(first, metric), mean(last, metric)
        if before is not None and now is not None and bad(before, now):
            found[name] = f"{meaning}: {metric} {before:.3g} -> {now:.3g}"
    turn1, final = mean(last, "turn1"), mean(last, "final")
    said_yes = mean(last, "verdict_yes")
    if said_yes is not None and said_yes > 98 and turn1 < 95:
        found["always_correct"] = f"{said_yes:.1f} % of the verdicts say correct, {turn1:.1f} % of the first attempts are"
    if said_yes is not None and said_yes < 2 and turn1 > 5:
        found["always_wrong"] = f"{said_yes:.1f} % of the verdicts say correct, {turn1:.1f} % of the first attempts are"
    fall, noise = mean(first, "turn1") - turn1, math.hypot(error(first, "turn1_error"), error(last, "turn1_error"))
    if fall > max(5, CLEAR * noise) and final > mean(first, "final"):
        found["first_attempt_falls"] = (
            f"the final answer improves ({mean(first, 'final'):.1f} -> {final:.1f} %) while the first attempt falls "
            f"({mean(first, 'turn1'):.1f} -> {turn1:.1f} %, standard error of the difference {noise:.1f})"
        )
    return found
