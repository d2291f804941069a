"""The rollout actors and what can happen to them: they start, load weights, run jobs, die, hang, come back elsewhere."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from srl.config import Config, ConfigError
from srl.learner.placement import SHARE
from srl.rollout.backlog import Order
from srl.rollout.loop import EngineFailure
from srl.rollout.thread import EngineHangs, Job
from srl.rollout.worker import CALLS_AT_ONCE, MakeEngine, RolloutWorker, StaleWeights
from srl.weights.bundle import Bundle
from srl.weights.stream import Stream, failed, hand_over, last_line

PAUSE_S = 0.2  # before an actor that is being restarted is asked again
HEARTBEAT_S = 5.0  # longest time until a worker without news answers
DEATHS_PER_TRY = 3  # a worker that dies (retries + 1) times this often without finishing anything is given up


class WeightsLost(RuntimeError):
    """A worker cannot have the current weights, because who made them is dead: load others."""


class State(Enum):
    STARTING = "starting"
    LOADING = "loading"
    WAITING = "waiting"  # for the first part of weights that are handed over
    ASLEEP = "asleep"
    UP = "up"
    GONE = "gone"


class Clock:
    """Seconds that the driver has listened. It stands still while the driver is elsewhere, training or grading: then nobody hears
    what workers say, and that is no delay of theirs. An engine that hangs meanwhile is noticed by its own worker.
    """

    def __init__(self) -> None:
        self.before, self.since = 0.0, None

    def now(self) -> float:
        return self.before if self.since is None else self.before + time.monotonic() - self.since

    @contextmanager
    def running(self) -> Iterator[None]:
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.before, self.since = self.now(), None


@dataclass(slots=True)
class Slot:
    """One actor, through all its restarts. `calls` are the calls to it that are under way, with when they were made."""

    index: int
    worker: ActorHandle
    clock: Clock
    state: State = State.STARTING
    since: float = 0.0
    orders: dict[str, tuple[Order, float]] = field(default_factory=dict)
    calls: dict[ray.ObjectRef, tuple[str, float]] = field(default_factory=dict)
    deaths: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # of its engine since it came up
    asked: float = 0.0  # when it was last asked whether it is up
    load_seconds: dict[str, float] = field(default_factory=dict)  # of the last weights
    life: str = ""  # what the worker calls itself; another one after each restart
    given_up: str = ""  # the life that was to be killed last: until it is, it still answers

    def call(self, name: str, *arguments) -> None:
        self.calls[getattr(self.worker, name).remote(*arguments)] = name, self.clock.now()

    def enter(self, state: State) -> None:
        self.state, self.since = state, self.clock.now()


@dataclass(frozen=True, slots=True)
class Finished:
    order: Order
    job: Job


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker died or hung with this order."""

    order: Order
    cause: str


Event = Finished | Lost


class Fleet:
    """Ray restarts actors that die, on any node with room; here they get the current weights before any work.

    `counts`: deaths and hangs of workers, and what the engines of dead ones had counted.
    """

    def __init__(
        self, config: Config, reward_actors: Sequence[ActorHandle], make_engine: MakeEngine, shared: PlacementGroup | None = None
    ):
        """`shared` is room for learner and engine i in bundle i; without it each actor goes where there is room."""
        self.config, self.shared = config, shared
        self.weights, self.given = None, 0.0  # the current ones, and when they were given
        self.resting = False  # until the next weights: whoever comes up is put to sleep, and needs none
        # Pickled apart, handles are no object references, of which Ray says at every start that a restart may miss them.
        self.arguments = cloudpickle.dumps(tuple(reward_actors)), make_engine
        self.counts: Counter[str] = Counter()
        self.clock, self.any_up = Clock(), 0.0
        self.last_cause = ""
        rollout = config.rollout
        self.slots = [Slot(index, self._actor(index), self.clock) for index in range(rollout.workers)]
        try:
            lives = ray.get([slot.worker.ready.remote() for slot in self.slots], timeout=rollout.start_timeout_s)
        except GetTimeoutError:
            self.close()
            raise ConfigError(
                f"rollout.start_timeout_s={rollout.start_timeout_s:g}: {rollout.workers} workers with "
                f"{rollout.cpus:g} CPUs and {rollout.gpus:g} GPUs each did not start; "
                f"free in the cluster: {ray.available_resources()}"
            ) from None
        except (RayActorError, RayTaskError) as error:
            self.close()
            raise ConfigError(f"a rollout worker could not start: {last_line(error)}") from None
        for slot, life in zip(self.slots, lives, strict=True):
            slot.life = life
            slot.enter(State.UP)

    def _actor(self, index: int) -> ActorHandle:
        rollout = self.config.rollout
        if self.shared:
            place = {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.shared, index)}
        else:
            place = {"label_selector": rollout.nodes}
        actor = ray.remote(RolloutWorker).options(
            num_cpus=rollout.cpus,
            num_gpus=rollout.gpus * (SHARE if self.shared else 1),
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
            **place,
        )
        return actor.remote(self.config, index, *self.arguments)

    @property
    def version(self) -> int:
        return self.weights.version if self.weights else 0

    def running(self) -> dict[int, list[Order]]:
        """Orders of each worker that can take more."""
        able = [slot for slot in self.slots if slot.state is State.UP and not self.resting]
        return {slot.index: [order for order, _ in slot.orders.values()] for slot in able}

    def orders(self) -> list[Order]:
        """All that workers have."""
        return [order for slot in self.slots for order, _ in slot.orders.values()]

    def loading(self) -> bool:
        return any(slot.state in (State.LOADING, State.WAITING) for slot in self.slots)

    def assign(self, index: int, orders: list[Order]) -> None:
        slot, now = self.slots[index], self.clock.now()
        slot.orders |= {order.job.id: (order, now) for order in orders}
        slot.call("add", [order.job for order in orders], self.version)
        self._listen(slot)

    def load_weights(self, weights: Bundle | Stream) -> None:
        """Begin to load these weights into every worker; those that start now or later get them before any work.

        A stream begins when all that are up now wait for it; those that come later get its copy in the object store.
        """
        self.weights, self.given, self.resting = weights, self.clock.now(), False
        for slot in self.slots:
            slot.load_seconds = {}
        finish_first = self.config.rollout.weight_update == "finish"
        for slot in self.slots:
            if slot.state not in (State.UP, State.ASLEEP):
                continue
            if isinstance(weights, Stream):
                slot.enter(State.LOADING)
                slot.call("begin_weights", weights.version, finish_first)
            else:
                self._load(slot)

    def sleep(self) -> Iterator[Event]:
        """Every worker that is not gone gives its GPU's memory back until the next weights; ends when all have.

        Who starts, loads or works is waited for: it would take memory beside learners that train. Raises TimeoutError when no
        engine has come up for `rollout.start_timeout_s`, and what `events` raises, also by the deadlines of loads and orders.
        """
        self.resting, limit = True, self.config.rollout.start_timeout_s
        deadline = time.monotonic() + limit
        while awake := [slot for slot in self.slots if slot.state not in (State.ASLEEP, State.GONE)]:
            if any(slot.state is not State.STARTING for slot in awake):
                deadline = time.monotonic() + limit
            elif time.monotonic() > deadline:
                who = ", ".join(str(slot.index) for slot in awake)
                raise TimeoutError(f"rollout.start_timeout_s={limit:g}: waited for engines to come up and be put to sleep: {who}")
            if idle := [slot for slot in awake if slot.state is State.UP and not slot.orders]:
                yield from self._put_to_sleep(idle)
            else:
                yield from self.events(PAUSE_S)

    def _put_to_sleep(self, idle: list[Slot]) -> Iterator[Event]:
        timeout_s, calls = self.config.rollout.timeout_s, {slot.worker.sleep.remote(): slot.index for slot in idle}
        lost = failed(calls, timeout_s, "an engine to sleep", "rollout.timeout_s")
        for slot in idle:
            slot.enter(State.ASLEEP)
        for index, why in lost.items():
            yield from self._kill(self.slots[index], "hangs", why)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """What was finished and what was lost; waits for news at most `timeout_s`. Deadlines count the time spent here alone.

        Raises RuntimeError or TimeoutError when no worker is left or none comes up, WeightsLost, and what is not the engine's
        fault as it is.
        """
        with self.clock.running():
            yield from self._events(timeout_s)

    def _events(self, timeout_s: float) -> Iterator[Event]:
        calls = {ref: slot for slot in self.slots for ref in slot.calls}
        if not calls:
            time.sleep(min(timeout_s, PAUSE_S))
        else:
            ready, _ = ray.wait(list(calls), timeout=timeout_s)
            # Not one of many each time: the rest of what is there comes now too.
            more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for ref in dict.fromkeys([*ready, *more]):
                yield from self._heard(calls[ref], ref)
        for slot in self.slots:
            if slot.state is State.STARTING and not slot.calls and time.monotonic() - slot.asked > PAUSE_S:
                slot.asked = time.monotonic()
                slot.call("ready")
            yield from self._late(slot)
        yield from self._hand_over()
        self._check_any_up()

    def close(self) -> None:
        for slot in self.slots:
            ray.kill(slot.worker)

    def _heard(self, slot: Slot, ref: ray.ObjectRef) -> Iterator[Event]:
        """Take the result of a call; it may have been given up while others were read."""
        name, made = slot.calls.pop(ref, ("", 0.0))
        if not name:
            return
        try:
            result = ray.get(ref)
        except RayActorError as error:
            yield from self._died(slot, error)
        except RayTaskError as error:
            yield from self._failed(slot, name, made, error)
        else:
            yield from self._answered(slot, name, result)

    def _died(self, slot: Slot, error: RayActorError) -> Iterator[Event]:
        if slot.state is State.STARTING and not isinstance(error, ActorDiedError):
            return  # Ray starts it; `_events` asks it again whether it is ready
        if isinstance(error, ActorDiedError):  # not restarted by Ray: it failed while it started
            slot.worker = self._actor(slot.index)
        yield from self._down(slot, "deaths", last_line(error))

    def _failed(self, slot: Slot, name: str, made: float, error: RayTaskError) -> Iterator[Event]:
        """Of a worker that lives: weights that are lost, or an engine that is to be replaced; anything else is raised."""
        if name == "load_weights" and isinstance(error.cause, ObjectLostError):
            slot.enter(State.STARTING)  # it loads what there is next
            if made >= self.given and not self.resting:
                raise WeightsLost(f"weights {self.version} are gone with the process or node that made them") from error
            return
        if not isinstance(error.cause, EngineFailure | EngineHangs | StaleWeights | TimeoutError):
            raise error
        hangs = isinstance(error.cause, EngineHangs | TimeoutError)  # the latter of weights that do not arrive
        yield from self._kill(slot, "hangs" if hangs else "deaths", last_line(error))

    def _answered(self, slot: Slot, name: str, result: Any) -> Iterator[Event]:
        match name:
            case "ready" if result != slot.given_up:  # the process that was killed may have answered last
                slot.life = result
                self._load(slot) if self.weights and not self.resting else slot.enter(State.UP)
            case "begin_weights":
                slot.life = result
                slot.enter(State.WAITING)
            case "load_weights" | "end_weights":
                version, slot.load_seconds = result
                self._load(slot) if version != self.version and not self.resting else slot.enter(State.UP)
            case "collect":
                yield from self._collected(slot, *result)

    def _collected(self, slot: Slot, jobs: list[Job], counts: dict[str, int]) -> Iterator[Event]:
        slot.counts = counts
        for job in jobs:
            if job.id in slot.orders:
                slot.deaths = 0
                yield Finished(slot.orders.pop(job.id)[0], job)
        self._listen(slot)

    def _listen(self, slot: Slot) -> None:
        if slot.orders and not any(name == "collect" for name, _ in slot.calls.values()):
            slot.call("collect", HEARTBEAT_S)

    def _load(self, slot: Slot) -> None:
        """From the object store."""
        slot.enter(State.STARTING)  # asked again if the learners cannot make the copy
        bundle = self.weights.bundle() if isinstance(self.weights, Stream) else self.weights
        slot.enter(State.LOADING)
        slot.call("load_weights", bundle, self.config.rollout.weight_update == "finish")

    def _hand_over(self) -> Iterator[Event]:
        """When all that take part wait: part after part. A worker that does not get all is replaced.

        Raises what the learners raise, when every worker that took part has been given up; nothing when they are to sleep anyway.
        """
        waiting = {slot.life: slot for slot in self.slots if slot.state is State.WAITING}
        if not waiting or any("begin_weights" in (name for name, _ in slot.calls.values()) for slot in self.slots):
            return
        timeout_s = self.config.learner.transfer_timeout_s
        workers = {life: slot.worker for life, slot in waiting.items()}
        try:
            lost = hand_over(self.weights, workers, self.config.rollout.tensor_parallel, timeout_s)
        except Exception as error:
            for slot in waiting.values():
                yield from self._kill(slot, "hangs", f"weights {self.weights.version} were broken off: {last_line(error)}")
            if not self.resting:
                raise
            return
        for life, slot in waiting.items():
            if life in lost:
                yield from self._kill(slot, "hangs", lost[life])
            else:
                slot.enter(State.LOADING)
                slot.call("end_weights")

    def _late(self, slot: Slot) -> Iterator[Event]:
        """Give up a worker that does not answer, or takes too long for an order or for weights."""
        rollout, now = self.config.rollout, self.clock.now()
        if slot.state is State.STARTING and now - slot.since > rollout.start_timeout_s:
            yield from self._kill(slot, "hangs", f"rollout.start_timeout_s={rollout.start_timeout_s:g}: it did not start")
        elif slot.state in (State.LOADING, State.WAITING) and now - slot.since > rollout.timeout_s:
            yield from self._kill(slot, "hangs", f"rollout.timeout_s={rollout.timeout_s:g}: weights did not load")
        elif any(now - begun > rollout.timeout_s for _, begun in slot.orders.values()):
            yield from self._kill(slot, "hangs", f"rollout.timeout_s={rollout.timeout_s:g}: a group did not end")
        elif any(name == "collect" and now - made > HEARTBEAT_S + rollout.hang_s for name, made in slot.calls.values()):
            yield from self._kill(slot, "hangs", f"rollout.hang_s={rollout.hang_s:g}: the worker does not answer")

    def _kill(self, slot: Slot, kind: str, why: str) -> Iterator[Event]:
        ray.kill(slot.worker, no_restart=False)
        slot.given_up = slot.life
        yield from self._down(slot, kind, why)

    def _down(self, slot: Slot, kind: str, why: str) -> Iterator[Event]:
        self.counts[kind] += 1
        self.last_cause = why
        if slot.state is not State.STARTING or kind == "deaths":
            slot.deaths += 1  # one that does not start may only lack a node; it may wait for it while others work
        self.counts.update(slot.counts)
        slot.counts = {}
        lost, slot.orders = [order for order, _ in slot.orders.values()], {}
        slot.calls.clear()
        if slot.deaths > DEATHS_PER_TRY * (self.config.rollout.retries + 1):
            ray.kill(slot.worker)
            slot.enter(State.GONE)
        else:
            slot.enter(State.STARTING)
        for order in lost:
            yield Lost(order, why)

    def _check_any_up(self) -> None:
        states = {slot.state for slot in self.slots}
        if states == {State.GONE}:
            raise RuntimeError(f"no rollout worker is left: {self.last_cause}")
        if states - {State.GONE, State.STARTING}:
            self.any_up = self.clock.now()
        elif self.clock.now() - self.any_up > self.config.rollout.start_timeout_s:
            raise TimeoutError(
                f"rollout.start_timeout_s={self.config.rollout.start_timeout_s:g}: no rollout worker came back; "
                f"the last was lost because: {self.last_cause}; free in the cluster: {ray.available_resources()}"
            )
