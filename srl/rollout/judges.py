"""Judges outside the model, for protocols that ask one. A judge is a function from a trajectory to a future verdict.

Anything that answers with a verdict is one: `in_threads` makes one of a plain function, `of_calls` of calls to Ray actors, such
as a reward model or a second language model.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.actor import ActorHandle

from srl.config import Config
from srl.config.names import look_up
from srl.protocols.action import Judge
from srl.trajectory import Outcome, Trajectory, Verdict


def in_threads(function: Callable[[Trajectory], Verdict], threads: int) -> Judge:
    """Calls `function` on this many threads of the rollout worker."""
    executor = ThreadPoolExecutor(threads, "judge")
    return lambda trajectory: executor.submit(function, trajectory)


def of_calls(call: Callable[[Trajectory], ray.ObjectRef], verdict: Callable[[Any], Verdict]) -> Judge:
    """`call` starts a remote call about a trajectory; `verdict` reads its result."""
    return lambda trajectory: then(call(trajectory).future(), verdict)


def gold_judge(reward_actors: Sequence[ActorHandle]) -> Judge:
    """Whether the last answer is the gold one, by the actors that grade, in turn."""
    turn = itertools.cycle(reward_actors)

    def grade(trajectory: Trajectory) -> ray.ObjectRef:
        return next(turn).grade.remote([(trajectory.id, trajectory.answers()[-1].answer, trajectory.gold)])

    return of_calls(grade, lambda grades: Verdict.CORRECT if set(grades.values()) == {Outcome.CORRECT} else Verdict.WRONG)


def make_judges(config: Config, reward_actors: Sequence[ActorHandle]) -> dict[str, Judge]:
    """By the names that protocols ask for. `protocol.judge` names a function from the configuration to a judge."""
    judges = {"gold": gold_judge(reward_actors)} if reward_actors else {}
    if config.protocol.judge:
        judges["judge"] = look_up("protocol.judge", config.protocol.judge, {})(config)
    return judges


def then(future: Future, function: Callable[[Any], Any]) -> Future:
    """A future of `function` of that future's result; errors pass through."""
    result: Future = Future()

    def settle(done: Future) -> None:
        try:
            result.set_result(function(done.result()))
        except Exception as error:
            result.set_exception(error)

    future.add_done_callback(settle)
    return result
