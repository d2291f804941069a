"""Evaluate one method on one benchmark: sample, grade, count."""

from collections.abc import Callable
from typing import Any

from srl.driver.session import Session
from srl.evaluation.metrics import summarise
from srl.tasks.problems import Problem
from srl.trajectory import Trajectory, to_record

# Methods of a run: which model, and how it is asked.
METHODS = {"base": ("", "prompted"), "intrinsic": ("", "intrinsic"), "ift": ("ift", ""), "rl": ("rl", "")}


def run_protocol(
    session: Session, protocol: str, name: str, problems: list[Problem], progress: Callable[[int], None] | None = None
) -> list[Trajectory]:
    """One graded trajectory per problem, with the weights that the workers hold."""
    trajectories = [session.new_trajectory(f"{name}/{problem.prompt_id}", problem) for problem in problems]
    done = session.pool().generate(protocol, trajectories, session.config.evaluate.temperature, progress)
    session.grade(done)
    return done


def evaluate(
    session: Session, method: str, benchmark: str, problems: list[Problem], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Measure `method` and write its row and some of its trajectories to the run directory."""
    checkpoint, protocol = METHODS[method]
    session.use_weights(str(session.run.file(f"checkpoints/{checkpoint}")) if checkpoint else session.base)
    settings = session.config.evaluate
    trajectories = run_protocol(session, protocol or session.config.protocol.name, f"test/{benchmark}", problems, progress)
    row = summarise(
        trajectories, method=method, benchmark=benchmark, temperature=settings.temperature, bootstrap=settings.bootstrap
    )
    session.run.add_row(row, [to_record(trajectory) for trajectory in trajectories[: settings.samples_kept]])
    return row
