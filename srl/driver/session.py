"""What every phase needs: the run directory and the actors, started when first used and kept for the whole run."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ray.util.placement_group import PlacementGroup, remove_placement_group

from srl.config import Config, ConfigError
from srl.driver.cluster import connect, disconnect
from srl.learner.placement import shared_room
from srl.observe.progress import say
from srl.observe.run_directory import RunDirectory
from srl.protocols.chat import Chat, model_folder
from srl.reward.actor import create_reward_actors
from srl.reward.queue import GradeQueue
from srl.reward.rules import GradeRequest, apply_grades, grade_request, share_alarm, silence_alarm, state_answers
from srl.rollout.pool import RolloutPool
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, Trajectory
from srl.weights.bucket import folder_tensors
from srl.weights.bundle import put_bundle


class Session:
    """Close it in any case: engines hold memory until they are killed."""

    def __init__(self, config: Config, run: RunDirectory):
        self.config, self.run = config, run
        self.base = model_folder(config.model.path)
        self.chat = Chat(self.base, config.prompts)
        self._pool: RolloutPool | None = None
        self._room: PlacementGroup | None = None
        self._rewards: list | None = None
        self._grading: GradeQueue | None = None
        self._holds = self.base
        self._told: dict[str, str] = {}  # phase in which an alarm about grades was said last

    def pool(self) -> RolloutPool:
        if self._pool is None:
            connect(self.config)
            self._pool = RolloutPool(self.config, self.rewards(), shared=self.room())
        return self._pool

    def room(self) -> PlacementGroup | None:
        """Where learner and engine i stand side by side (rollout.colocate); None when they stand apart."""
        if self._room is None and self.config.rollout.colocate:
            connect(self.config)
            self._room = shared_room(self.config)
        return self._room

    def leave_room(self) -> None:
        """Whoever is still in it ends."""
        if self._room is not None and self._pool is None:
            remove_placement_group(self._room)
            self._room = None

    def rewards(self) -> list:
        if self._rewards is None:
            connect(self.config)
            self._rewards = create_reward_actors(self.config.reward)
        return self._rewards

    def use_weights(self, folder: str) -> None:
        """Make every rollout worker hold the weights of a model folder. Raises ConfigError if there is none."""
        pool = self.pool()
        if self._holds == folder:
            return
        if not list(Path(folder).glob("*.safetensors")):
            raise ConfigError(f"{folder}: no model weights (*.safetensors); run the phase that makes it first")
        pool.load_weights(put_bundle(pool.version + 1, folder_tensors(Path(folder)), self.config.learner.bucket_mib))
        self._holds = folder

    def policy_moves(self) -> None:
        """The workers' weights now come from the learner, not from a folder."""
        self._holds = ""

    def new_trajectory(self, name: str, problem: Problem) -> Trajectory:
        return Trajectory(
            name,
            problem.prompt_id,
            problem.question,
            problem.gold,
            self.chat.opening(problem.question),
            seed=self.config.run.seed,
        )

    def begin_grading(self, trajectories: list[Trajectory]) -> None:
        """Have every answer graded while something else is done; `grade` takes the outcomes."""
        if requests := self._to_grade(trajectories):
            self.grading().put(requests)

    def grade(self, trajectories: list[Trajectory]) -> None:
        """Set the outcome of every answer; says so loudly when the grader could not judge many, or most are none."""
        requests = self._to_grade(trajectories)
        grades = self.grading().take(requests, self.config.reward.timeout_s) if requests else {}
        self.judge_grader(Counter(grades.values()))
        apply_grades(trajectories, grades)

    def grading(self) -> GradeQueue:
        if self._grading is None:
            self._grading = GradeQueue(self.rewards())
        return self._grading

    def forget_grades(self) -> None:
        """What was begun is not wanted any more: the same ids may come with other answers."""
        self._grading = None

    def _to_grade(self, trajectories: list[Trajectory]) -> list[GradeRequest]:
        if self.config.reward.answers == "stated":
            state_answers(trajectories)
        return [request for trajectory in trajectories for request in grade_request(trajectory)]

    def judge_grader(self, grades: Mapping[Outcome, int]) -> None:
        """Say and record, once in a phase, that the grader could not judge many of these answers, or that most are none."""
        reward = self.config.reward
        found = {"grader": share_alarm(grades, reward.alarm_share), "no_answer": silence_alarm(grades, reward.answers)}
        for name, alarm in found.items():
            if alarm is not None and self._told.get(name) != self.run.current:
                self._told[name] = self.run.current
                say(f"ALARM {name}: {alarm}")
                self.run.record("alarm", self.run.step, name=name, meaning=alarm, during=self.run.current)

    def stop_engines(self) -> None:
        """Free what the rollout workers hold; the next use of `pool` starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool, self._holds = None, self.base
        self.leave_room()

    def close(self) -> None:
        self.run.close()
        disconnect()
