"""Stage 2: roll out, grade, update, send the weights back; keep the policy that does best on validation.

Synchronous: each step samples from the policy that it trains.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from srl.driver.evaluate import run_protocol
from srl.driver.policy import PolicyUpdate
from srl.driver.sampling import sample_extra, sample_groups
from srl.driver.selection import Selection
from srl.driver.session import Session
from srl.evaluation.metrics import summarise
from srl.learner.schedule import schedule
from srl.observe.alarms import alarms, behaviour
from srl.reward.rules import final_outcome
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, Trajectory


def train_policy(session: Session, problems: list[Problem], validation: list[Problem], say: Callable[[str], None]) -> None:
    """Stage 2 as the recipe says; writes the policy that did best on validation to checkpoints/rl."""
    config, settings, run = session.config, session.config.rl, session.run
    start = start_folder(session)
    session.use_weights(start)
    session.policy_moves()
    update = PolicyUpdate(config, start, session.chat.opening(""))
    batches = problem_batches(problems, settings.prompts, config.run.seed)
    selection, history, weights = Selection(settings.patience), [], []
    validate(session, validation, 0, say)
    for step in range(settings.steps):
        clock = Clock()
        trajectories = sample_groups(session, next(batches), step, weights)
        clock.lap("rollout_s")
        session.grade(trajectories)
        extra = sample_extra(session, trajectories)
        clock.lap("reward_s")
        learning_rate = settings.learning_rate * schedule(step, settings.steps, settings.warmup_steps, decay=False)
        updated = update.step(trajectories + extra, step, learning_rate)
        clock.lap("learner_s")
        if updated["optimizer_steps"]:
            bundle, _ = update.learners.publish(session.pool().version + 1)
            session.pool().load_weights(bundle)
            weights = [*weights, bundle][-2:] if settings.previous_share else []
        clock.lap("weights_s")
        metrics = step_metrics(trajectories, updated, clock, learning_rate, session.pool().version)
        run.record("rl", step, **metrics)
        say(step_line(step, settings.steps, metrics))
        tell_alarms(session, history, {"step": step, **metrics}, say)
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            row = validate(session, validation, step + 1, say)
            if selection.offer(step + 1, row["final"], row["delta"]):
                update.learners.save(run.file("checkpoints/rl"))
            if selection.exhausted:
                say(f"step {step + 1}: none of the last {settings.patience} evaluations was better, RL ends")
                break
    say(f"kept: step {selection.best_step}, final {selection.best[0]:.1f}")
    update.close()


def start_folder(session: Session) -> str:
    """The model that stage 2 starts from."""
    start = session.config.rl.start
    return {"ift": str(session.run.file("checkpoints/ift")), "base": session.base}.get(start, start)


def tell_alarms(session: Session, history: list[dict[str, Any]], metrics: dict[str, Any], say: Callable[[str], None]) -> None:
    """Append to the history; say and record what is wrong now and was not one step before."""
    before = alarms(history)
    history.append(metrics)
    for name, meaning in alarms(history).items():
        if name not in before:
            say(f"ALARM {name}: {meaning}")
            session.run.record("alarm", metrics["step"], name=name, meaning=meaning)


class Clock:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.last = round(now - self.last, 3), now


def problem_batches(problems: list[Problem], size: int, seed: int) -> Iterator[list[Problem]]:
    """Endless batches; every problem is seen once before any is seen again."""
    epoch, queue = 0, []
    while True:
        while len(queue) < size:
            queue += random.Random(f"{seed} rl {epoch}").sample(problems, len(problems))
            epoch += 1
        yield queue[:size]
        queue = queue[size:]


def validate(session: Session, problems: list[Problem], step: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the policy that the workers hold; the row that is recorded."""
    trajectories = run_protocol(session, session.config.protocol.name, f"validation/{step}", problems)
    row = summarise(trajectories, method="rl", benchmark="validation", temperature=session.config.evaluate.temperature)
    kept = {name: row[name] for name in ("turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong")}
    session.run.record("rl-validation", step, **kept)
    say(f"step {step:>3}  validation: turn 1 {row['turn1']:.1f}  final {row['final']:.1f}  delta {row['delta']:+.1f}")
    return row


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
        **updated,
    }


def step_line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    return (
        f"step {step + 1:>3}/{steps}  turn 1 {metrics['turn1']:5.1f}  final {metrics['final']:5.1f}  "
        f"kl {metrics.get('kl', 0.0):.4f}  entropy {metrics.get('entropy', 0.0):.3f}  "
        f"{signal(metrics)}  "
        f"{metrics['tokens_per_second']:,.0f} tokens/s  {metrics['seconds']:.1f} s"
    )


def signal(metrics: dict[str, Any]) -> str:
    """How much of what was sampled taught anything, in the words of the recipe's loss."""
    for name, words in (("groups_without_signal", "silent groups"), ("pairs", "pairs"), ("demonstrations", "demonstrations")):
        if name in metrics:
            return f"{words} {metrics[name]:>3.0f}"
    return f"right {metrics['right']:>3.0f}"
