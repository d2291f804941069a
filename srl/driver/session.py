"""What every phase needs: Ray, the run directory, and the actors, started when first used and kept for the whole run."""

import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import ray
import ray._private.utils
import ray.data
from ray.util.placement_group import PlacementGroup, remove_placement_group

from srl.config import Config, ConfigError
from srl.driver.resources import alive_nodes, shortage
from srl.learner.placement import shared_room
from srl.observe.progress import say
from srl.observe.run_directory import RunDirectory
from srl.protocols.chat import Chat, model_folder
from srl.reward.actor import create_reward_actors
from srl.reward.queue import GradeQueue
from srl.reward.rules import GradeRequest, apply_grades, grade_request, share_alarm, state_answers
from srl.rollout.pool import RolloutPool
from srl.tasks.problems import Problem, chain_problems, load_problems
from srl.trajectory import Outcome, Trajectory
from srl.weights.bucket import folder_tensors
from srl.weights.bundle import put_bundle

ANSWER_S = 10.0  # longest wait for a cluster's head to take a connection
CALLS_KEPT = 10_000  # of actors, which Ray's tools can list: at 3 KiB each its own 100,000 fill 330 MB in the course of a run
NODES_LOOK_S = 1.0  # between two looks at the nodes that have joined


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
        self._told = ""  # phase in which the grader's alarm was said

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
        """Set the outcome of every answer; says so loudly when the grader could not judge many of them."""
        requests = self._to_grade(trajectories)
        grades = self.grading().take(requests, self.config.reward.timeout_s) if requests else {}
        self.judge_grader(Counter(grades.values()))
        apply_grades(trajectories, grades)

    def grading(self) -> GradeQueue:
        if self._grading is None:
            self._grading = GradeQueue(self.rewards())
        return self._grading

    def _to_grade(self, trajectories: list[Trajectory]) -> list[GradeRequest]:
        if self.config.reward.answers == "stated":
            state_answers(trajectories)
        return [request for trajectory in trajectories for request in grade_request(trajectory)]

    def judge_grader(self, grades: Mapping[Outcome, int]) -> None:
        """Say and record, once in a phase, that the grader could not judge many of these answers."""
        alarm = share_alarm(grades, self.config.reward.alarm_share)
        if alarm is not None and self._told != self.run.current:
            self._told = self.run.current
            say(f"ALARM grader: {alarm}")
            self.run.record("alarm", self.run.step, name="grader", meaning=alarm)

    def stop_engines(self) -> None:
        """Free what the rollout workers hold; the next use of `pool` starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool, self._holds = None, self.base
        self.leave_room()

    def close(self) -> None:
        self.run.close()
        if ray.is_initialized():
            ray.shutdown()


def connect(config: Config) -> None:
    """Join the cluster this process is in, or the configured one, or start a local Ray."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    quiet_pipelines()
    options = {"namespace": f"srl-{config.run.name}", "log_to_driver": False, "logging_level": "ERROR"}
    if config.run.log == "json":
        options |= {"logging_config": ray.LoggingConfig(encoding="JSON", log_level="ERROR")}
    setting, address = cluster_address(config)
    if address:
        try:
            with stopped_afterwards():
                ray.init(address=address, **options)
        except ConnectionError as error:
            raise ConfigError(f"{setting}={address}: no Ray cluster answers there ({error})") from None
        check_cluster(config, config.run.nodes_wait_s)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", str(CALLS_KEPT))
    if config.run.dashboard_port:
        options |= {"dashboard_port": config.run.dashboard_port}
    # Without `local` it would try to join whatever cluster `ray start` has left on this machine.
    with stopped_afterwards():
        ray.init(
            address="local",
            num_cpus=config.run.local_cpus,
            object_store_memory=config.run.object_store_mib * 2**20,
            include_dashboard=bool(config.run.dashboard_port),
            **options,
        )
    check_cluster(config, 0)


@contextmanager
def stopped_afterwards() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of this block and then raise KeyboardInterrupt.

    Cut short, ray.init ends the process with a status of its own, or aborts it.
    """
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # It would put a handler of its own there that exits at once, and leave it.
        with patch.object(ray._private.utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


def quiet_pipelines() -> None:
    """Ray Data's own progress reports would tear the run's."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def cluster_address(config: Config) -> tuple[str, str]:
    """Setting or variable that names the cluster to join, and the address; "" for none."""
    setting = "run.ray_address" if config.run.ray_address else "RAY_ADDRESS"
    return setting, config.run.ray_address or os.environ.get("RAY_ADDRESS", "")


def check_address(config: Config) -> None:
    """Raises ConfigError when nothing listens at the cluster's address, for which Ray itself would wait many minutes."""
    setting, address = cluster_address(config)
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise ConfigError(f"{setting}={address}: not a cluster's address: HOST:PORT of its head, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{setting}={address}: no Ray cluster answers there ({error})") from None


def check_port(config: Config) -> None:
    """Raises ConfigError when the dashboard's port is in use."""
    port = config.run.dashboard_port
    if not port:
        return
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"run.dashboard_port={port}: the port is taken") from None


def check_cluster(config: Config, wait_s: float) -> None:
    """Raises ConfigError when the cluster cannot hold all actors at once, asked and present side by side.

    A job may begin before the cluster's nodes have joined: KubeRay submits it as soon as the head answers. They are waited for.
    """
    begun, told = time.monotonic(), False
    while lack := shortage(config, alive_nodes(ray.nodes())):
        if time.monotonic() - begun >= wait_s:
            raise ConfigError(lack + (f"; waited run.nodes_wait_s={wait_s:g} for more" if wait_s else ""))
        if not told:
            say(f"waiting for nodes, {wait_s:g} s at most: {lack}")
            told = True
        time.sleep(NODES_LOOK_S)


def load_task(config: Config) -> dict[str, dict[str, list[Problem]]]:
    """Problems by use: train and validation under one name, test by benchmark. Raises ConfigError naming file and row.

    Called before anything starts, so that bad data costs nothing.
    """
    task, wanted = config.task, config.stage1.prompts
    steps = (task.min_operations, task.max_operations)
    if task.name == "chains":
        rl_prompts = config.rl.prompts * config.rl.steps
        return {
            "train": {"chains": chain_problems("train", wanted, task.seed, *steps)},
            "rl": {"chains": chain_problems("train", rl_prompts, task.seed + 1, *steps)},
            "validation": {"chains": chain_problems("validation", config.evaluate.validation_problems, task.seed, *steps)},
            "test": {"chains": chain_problems("test", config.evaluate.problems, task.seed, *steps)},
        }
    keys = (task.question_key, task.answer_key)
    held_out = config.evaluate.validation_problems
    # No more than the phases can use: each gold is parsed here, and NuminaMath-CoT has 860,000.
    used = max(wanted, config.rl.prompts * config.rl.steps)
    train = load_problems(task.train, *keys, used + (0 if task.validation else held_out))
    if task.validation:
        validation = load_problems(task.validation, *keys, held_out)
    elif len(train) > held_out:
        validation, train = train[:held_out], train[held_out:]
    else:
        raise ConfigError(
            f"task.train={task.train} has {len(train)} problems, too few to hold out evaluate.validation_problems={held_out}"
        )
    test = {}
    for name, source in task.test.items():
        test[name] = load_problems(source, *keys, config.evaluate.problems)
    return {"train": {"train": train[:wanted]}, "rl": {"train": train}, "validation": {"validation": validation}, "test": test}


def check_wording(config: Config, problems: Iterable[Problem]) -> None:
    """Raises ConfigError naming the setting, or the problem, whose text the tokenizer cannot write."""
    chat = Chat(model_folder(config.model.path), config.prompts)
    for name, text in config.prompts.model_dump().items():
        try:
            chat.encode(text.replace("{question}", ""))
        except ConfigError as error:
            raise ConfigError(f"prompts.{name}: {error}") from None
    for prompt_id, question in {problem.prompt_id: problem.question for problem in problems}.items():
        try:
            chat.opening(question)
        except ConfigError as error:
            raise ConfigError(f"problem {prompt_id}: {error}") from None
