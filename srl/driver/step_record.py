"""What a step of stage 2 records and says."""

import time
from typing import Any

from srl.observe.alarms import behaviour, error_by_problem
from srl.reward.rules import final_outcome
from srl.trajectory import Outcome, Trajectory


class Clock:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.last = round(self.laps.get(name, 0.0) + now - self.last, 3), now


def step_metrics(
    trajectories: list[Trajectory], updated: dict[str, float], clock: Clock, learning_rate: float, version: int
) -> dict[str, Any]:
    """One flat record of a step. Losses and ratios are means over its optimizer steps; accuracies are per cent."""
    count = len(trajectories)
    tokens = sum(trajectory.sampled_tokens() for trajectory in trajectories)
    seconds = time.monotonic() - clock.started
    right = [turn.outcome is Outcome.CORRECT for trajectory in trajectories for turn in trajectory.answers()[:1]]
    stops: dict[str, int] = {}
    for trajectory in trajectories:
        stops[f"stop_{trajectory.stop_reason}"] = stops.get(f"stop_{trajectory.stop_reason}", 0) + 1
    if groups := updated.get("groups"):
        updated["silent_share"] = 100 * updated["groups_without_signal"] / groups
    reward = sum(trajectory.reward for trajectory in trajectories) / count
    return {
        "reward": reward,
        "turn1": 100 * sum(right) / count,
        "final": 100 * sum(final_outcome(trajectory) for trajectory in trajectories) / count,
        "tokens": tokens,
        "tokens_per_trajectory": tokens / count,
        "seconds": round(seconds, 3),
        "tokens_per_second": tokens / seconds,
        "learning_rate": learning_rate,
        "weight_version": version,
        **clock.laps,
        **stops,
        **behaviour(trajectories),
        **error_by_problem(trajectories),
        **updated,
    }


def step_line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    """One line for the console; without a reference there is no KL to tell."""
    kl = f"kl {metrics['kl']:.4f}  " if "kl" in metrics else ""
    return (
        f"step {step + 1:>3}/{steps}  turn 1 {metrics['turn1']:5.1f}  final {metrics['final']:5.1f}  "
        f"{kl}entropy {metrics.get('entropy', 0.0):.3f}  "
        f"{signal(metrics)}  "
        f"{metrics['tokens_per_second']:,.0f} tokens/s  {metrics['seconds']:.1f} s"
    )


def signal(metrics: dict[str, Any]) -> str:
    """How much of what was sampled taught anything, in the words of the recipe's loss."""
    for name, words in (("groups_without_signal", "silent groups"), ("pairs", "pairs"), ("demonstrations", "demonstrations")):
        if name in metrics:
            return f"{words} {metrics[name]:>3.0f}"
    return f"right {metrics['right']:>3.0f}"
