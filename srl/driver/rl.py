"""Stage 2: roll out, grade, compare within groups, update, send the weights back.

Synchronous: each step samples from the policy that it trains.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from srl.driver.evaluate import run_protocol
from srl.driver.policy import reward, update_policy
from srl.driver.session import Session
from srl.evaluation.metrics import summarise
from srl.learner.group import LearnerGroup
from srl.learner.schedule import schedule
from srl.reward.rules import final_outcome
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, Trajectory


def train_policy(session: Session, problems: list[Problem], validation: list[Problem], say: Callable[[str], None]) -> None:
    """GRPO with KL to the stage-1 model; writes checkpoints/rl."""
    config, settings, run = session.config, session.config.rl, session.run
    start = str(run.file("checkpoints/ift"))
    session.use_weights(start)
    session.policy_moves()
    learners = LearnerGroup(config, start, start, settings.learning_rate, settings.weight_decay, settings.gradient_clip)
    batches = problem_batches(problems, settings.prompts, config.run.seed)
    for step in range(settings.steps):
        if step % settings.evaluate_every == 0:
            validate(session, validation, step, say)
        clock = Clock()
        groups = [
            session.new_trajectory(f"rl/{step}/{problem.prompt_id}/{member}", problem)
            for problem in next(batches)
            for member in range(settings.group)
        ]
        trajectories = session.pool().generate(config.protocol.name, groups, 1.0)
        clock.lap("rollout_s")
        session.grade(trajectories)
        reward(trajectories)
        clock.lap("reward_s")
        learning_rate = settings.learning_rate * schedule(step, settings.steps, settings.warmup_steps, decay=False)
        updates, silent = update_policy(settings, learners, trajectories, learning_rate)
        clock.lap("learner_s")
        if updates:
            bundle, _ = learners.publish(session.pool().version + 1)
            session.pool().load_weights(bundle)
        clock.lap("weights_s")
        metrics = step_metrics(trajectories, updates, silent, clock, learning_rate, session.pool().version)
        run.record("rl", step, **metrics)
        say(step_line(step, settings.steps, metrics))
    validate(session, validation, settings.steps, say)
    learners.save(run.file("checkpoints/rl"))
    learners.close()


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


def validate(session: Session, problems: list[Problem], step: int, say: Callable[[str], None]) -> None:
    trajectories = run_protocol(session, session.config.protocol.name, f"validation/{step}", problems)
    row = summarise(trajectories, method="rl", benchmark="validation", temperature=session.config.evaluate.temperature)
    kept = {name: row[name] for name in ("turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong")}
    session.run.record("rl-validation", step, **kept)
    say(f"step {step:>3}  validation: turn 1 {row['turn1']:.1f}  final {row['final']:.1f}  delta {row['delta']:+.1f}")


def step_metrics(
    trajectories: list[Trajectory], updates: list[dict[str, float]], silent: int, clock: Clock, learning_rate: float, version: int
) -> dict[str, Any]:
    """One flat record of a step. Losses and ratios are means over its optimizer steps; accuracies are per cent."""
    count = len(trajectories)
    tokens = sum(trajectory.sampled_tokens() for trajectory in trajectories)
    seconds = time.monotonic() - clock.started
    right = [turn.outcome is Outcome.CORRECT for trajectory in trajectories for turn in trajectory.answers()[:1]]
    stops: dict[str, int] = {}
    for trajectory in trajectories:
        stops[f"stop_{trajectory.stop_reason}"] = stops.get(f"stop_{trajectory.stop_reason}", 0) + 1
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]} if updates else {}
    reward = sum(trajectory.reward for trajectory in trajectories) / count
    return {
        "reward": reward,
        "turn1": 100 * sum(right) / count,
        "final": 100 * sum(final_outcome(trajectory) for trajectory in trajectories) / count,
        "groups_without_signal": silent,
        "tokens": tokens,
        "tokens_per_trajectory": tokens / count,
        "seconds": round(seconds, 3),
        "tokens_per_second": tokens / seconds,
        "learning_rate": learning_rate,
        "weight_version": version,
        **clock.laps,
        **stops,
        **means,
    }


def step_line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    return (
        f"step {step + 1:>3}/{steps}  turn 1 {metrics['turn1']:5.1f}  final {metrics['final']:5.1f}  "
        f"kl {metrics.get('kl', 0.0):.4f}  entropy {metrics.get('entropy', 0.0):.3f}  "
        f"silent groups {metrics['groups_without_signal']:>3}  "
        f"{metrics['tokens_per_second']:,.0f} tokens/s  {metrics['seconds']:.1f} s"
    )
