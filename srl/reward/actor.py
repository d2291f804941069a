"""The Ray actor that grades."""

from collections import Counter
from collections.abc import Sequence

import ray
from ray.actor import ActorHandle

from srl.config import RewardConfig
from srl.observe.pulse import start_pulse
from srl.reward.grader import Grader
from srl.reward.rules import GradeRequest
from srl.trajectory import Outcome


@ray.remote
class RewardActor:
    """A grader in an actor, one call at a time. Refuses to start if it gets a known case wrong."""

    def __init__(self, index: int, config: RewardConfig) -> None:
        self.index = index
        self.outcomes: Counter[Outcome] = Counter()
        self.grader = Grader(config)
        self.grader.prove()
        start_pulse("reward", index, self.pulse_counts)

    def __repr__(self) -> str:
        return f"RewardActor({self.index})"

    def grade(self, requests: Sequence[GradeRequest]) -> dict[str, Outcome]:
        """Outcome by request id. Raises ValueError naming the first gold that cannot be read."""
        grades = {}
        results = self.grader.grade([(answer, gold) for _, answer, gold in requests])
        for (request_id, _, _), grade in zip(requests, results, strict=True):
            if grade.outcome is None:
                raise ValueError(f"{request_id}: {grade.message}")
            grades[request_id] = grade.outcome
        self.outcomes.update(grades.values())
        return grades

    def counts(self) -> dict[str, int]:
        """Grades given since the actor (re)started, by outcome; how many the cache answered; how its processes ended."""
        counts = {str(outcome): count for outcome, count in self.outcomes.items()}
        return {**counts, "cached": self.grader.cached, "killed": self.grader.pool.killed, "died": self.grader.pool.died}

    def pulse_counts(self) -> dict[str, int]:
        """For the metrics: grades by outcome, and what became of the processes."""
        grades = {f"grades/{outcome}": count for outcome, count in dict(self.outcomes).items()}
        return {**grades, "processes_killed": self.grader.pool.killed, "processes_died": self.grader.pool.died}


def create_reward_actors(config: RewardConfig) -> list[ActorHandle]:
    """Start `config.workers` actors that Ray restarts, and whose calls it repeats, without limit: grading has no state."""
    options = {"num_cpus": config.cpus, "label_selector": config.nodes, "max_restarts": -1, "max_task_retries": -1}
    return [RewardActor.options(**options).remote(index, config) for index in range(config.workers)]
