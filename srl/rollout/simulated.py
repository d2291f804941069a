"""How many rollout workers a run needs: the real loop and the real dealing of groups, on engines that only keep time.

A stand-in for measurements on a cluster, not a replacement: sequences differ in length alone, and nothing fails.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

from srl.protocols.action import Action, Generate, Protocol, Sampled, Stop
from srl.rollout.backlog import Backlog, Order
from srl.rollout.engine import Completion, Sampling
from srl.rollout.loop import Limits, TrajectoryLoop
from srl.rollout.pool import AHEAD
from srl.rollout.thread import Job
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind


@dataclass(frozen=True, slots=True)
class Cluster:
    """One worker generates `alone` tokens/s with one sequence and `full` with `max_sequences`; a step's time is linear between.

    Lengths are log-normal and cut at `max_tokens`, which leaves a mean of `mean_tokens`; before the cut the standard deviation of
    their logarithm is `spread`. The learner takes `learner_tokens_s` tokens/s and a sync `sync_s` seconds, in which engines stand
    still. Rollouts may begin `ahead` steps before the weights of their own step are there: 0 is synchronous training. With
    `finish` (rollout.weight_update) an engine first ends what runs and begins nothing, and the learner waits for all; if they
    load `together` (learner.transfer broadcast, ipc) none goes on before all have.
    """

    workers: int
    alone: float
    full: float
    learner_tokens_s: float
    mean_tokens: float
    max_tokens: int
    spread: float = 0.6
    max_sequences: int = 256
    prompts: int = 1024
    group: int = 8
    sync_s: float = 0.0
    ahead: int = 0
    steps: int = 4
    finish: bool = True
    together: bool = False


@dataclass(frozen=True, slots=True)
class Shares:
    """Seconds per step; sampled tokens/s of all workers; shares (0-1) of the time in which workers and learner have no work."""

    step_s: float
    tokens_s: float
    rollout_idle: float
    learner_idle: float


class SimulatedEngine:
    """Keeps the time `now` (seconds); a step lasts until the next request ends, at `next_end`.

    Nothing is aborted in a simulation, and weights are the `pause` that they take.
    """

    version = 0

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.mu = location(cluster.mean_tokens, cluster.spread, cluster.max_tokens)
        self.now = self.busy_s = 0.0
        self.generated = 0.0  # tokens of a request that ran since the beginning
        self.ends: list[tuple[float, int, str]] = []  # heap of (when by that count, length, request)

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        drawn = round(random.Random(sampling.seed).lognormvariate(self.mu, self.cluster.spread))
        length = min(max(1, drawn), sampling.max_tokens)
        heapq.heappush(self.ends, (self.generated + length, length, request_id))

    def step(self) -> list[Completion]:
        self.advance(self.next_end)
        ended = []
        while self.ends and self.ends[0][0] <= self.generated + 1e-6:
            _, length, request_id = heapq.heappop(self.ends)
            ended.append(Completion(request_id, [0] * length, [], False))
        return ended

    @property
    def next_end(self) -> float:
        return self.now + (self.ends[0][0] - self.generated) * self._step_s() if self.ends else math.inf

    def advance(self, time: float) -> None:
        """Run on until that time, if it has not come."""
        seconds = max(0.0, time - self.now)
        if self.ends:
            self.generated += seconds / self._step_s()
            self.busy_s += seconds
        self.now += seconds

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def _step_s(self) -> float:
        """Seconds for one token of every request that runs."""
        cluster = self.cluster
        first, last = 1 / cluster.alone, cluster.max_sequences / cluster.full
        return first + (last - first) * (len(self.ends) - 1) / max(1, cluster.max_sequences - 1)


@dataclass
class Simulation:
    """`begun` steps are dealt out, `version` steps are trained; `unfinished` groups by step."""

    cluster: Cluster
    clock: float = 0.0
    version: int = 0
    begun: int = 0
    tokens: int = 0
    learner_busy_s: float = 0.0
    learner_ends: float = math.inf
    unfinished: dict[int, int] = field(default_factory=dict)
    step_tokens: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = Limits(2 * self.cluster.max_tokens, max_active=self.cluster.max_sequences)
        self.engines = [SimulatedEngine(self.cluster) for _ in range(self.cluster.workers)]
        self.loops = [TrajectoryLoop(engine, None, limits) for engine in self.engines]
        self.running: dict[int, list[Order]] = {worker: [] for worker in range(self.cluster.workers)}
        self.backlog = Backlog(0, max(1, round(AHEAD * self.cluster.max_sequences)))
        self.protocol = one_generation(self.cluster.max_tokens)

    def run(self) -> Shares:
        while self.version < self.cluster.steps:
            self._begin_steps()
            self._deal()
            soonest = min(engine.next_end for engine in self.engines)
            if soonest >= self.learner_ends:
                self._trained()
                continue
            self._move(soonest)
            self._train()
        seconds = self.clock
        return Shares(
            seconds / self.cluster.steps,
            self.tokens / seconds,
            1 - sum(engine.busy_s for engine in self.engines) / (seconds * self.cluster.workers),
            1 - self.learner_busy_s / seconds,
        )

    def _move(self, soonest: float) -> None:
        """To the time when the next request ends; all that ends then, before anything is dealt."""
        self.clock = soonest
        for engine, loop in zip(self.engines, self.loops, strict=True):
            if engine.next_end <= soonest + 1e-9:
                loop.step()
                loop.begin_waiting()

    def _begin_steps(self) -> None:
        while self.begun < min(self.cluster.steps, self.version + self.cluster.ahead + 1):
            step, self.begun = self.begun, self.begun + 1
            self.unfinished[step], self.step_tokens[step] = self.cluster.prompts, 0
            for prompt in range(self.cluster.prompts):
                names = [f"{step}/{prompt}/{member}" for member in range(self.cluster.group)]
                group = [Trajectory(name, str(prompt), "", "", [0]) for name in names]
                self.backlog.put(Order(Job(f"{step}/{prompt}", "", group, 1.0), step))

    def _deal(self) -> None:
        """To those that are not about to load."""
        up = {worker: orders for worker, orders in self.running.items() if not self.loops[worker].paused}
        for worker, order in self.backlog.deal(up):
            self.engines[worker].advance(self.clock)
            self.running[worker].append(order)
            left = [order.size]
            for trajectory in order.job.trajectories:
                self.loops[worker].add(trajectory, self.protocol, 1.0, self._counter(worker, order, left, trajectory))
            self.loops[worker].begin_waiting()

    def _counter(self, worker: int, order: Order, left: list[int], trajectory: Trajectory) -> Callable[[], None]:
        def ended() -> None:
            left[0] -= 1
            self.step_tokens[order.ticket] += len(trajectory.turns[0].token_ids)
            if not left[0]:
                self.running[worker].remove(order)
                self.unfinished[order.ticket] -= 1

        return ended

    def _train(self) -> None:
        """Begin to train the next step if all of it is there and the learner is free."""
        if self.learner_ends == math.inf and self.unfinished.get(self.version) == 0:
            seconds = self.step_tokens[self.version] / self.cluster.learner_tokens_s
            self.learner_busy_s += seconds
            self.learner_ends = self.clock + seconds

    def _trained(self) -> None:
        self.clock = self.learner_ends
        for engine, loop in zip(self.engines, self.loops, strict=True):
            engine.advance(self.clock)
            loop.paused = True
        while waiting := [worker for worker, loop in enumerate(self.loops) if loop.paused]:
            self._load(waiting)
            if any(loop.paused for loop in self.loops):
                self._deal()
                self._move(min(engine.next_end for engine in self.engines))
        self._go_on_until(self.clock + self.cluster.sync_s)
        self.tokens += self.step_tokens[self.version]
        self.version, self.learner_ends = self.version + 1, math.inf
        self._train()

    def _load(self, waiting: list[int]) -> None:
        """Into those of the waiting ones that may load now; they begin again what they have."""
        ready = [worker for worker in waiting if not (self.cluster.finish and self.loops[worker].active)]
        if self.cluster.together and len(ready) < len(waiting):
            return
        for worker in ready:
            self.engines[worker].advance(self.clock)
            self.engines[worker].pause(self.cluster.sync_s)
            self.loops[worker].paused = False
            self.loops[worker].begin_waiting()

    def _go_on_until(self, time: float) -> None:
        """The last engine loads; others may have loaded before."""
        self._deal()
        while (soonest := min(engine.next_end for engine in self.engines)) < time:
            self._move(soonest)
            self._deal()
        self.clock = time
        for engine in self.engines:
            engine.advance(time)


def location(mean: float, spread: float, most: float) -> float:
    """The mean of the logarithm of log-normal lengths that have that mean when none is longer than `most`."""
    if not spread:
        return math.log(mean)
    normal = NormalDist()

    def cut_mean(mu: float) -> float:
        at = (math.log(most) - mu) / spread
        return math.exp(mu + spread**2 / 2) * normal.cdf(at - spread) + most * (1 - normal.cdf(at))

    low, high = math.log(mean) - spread**2 / 2, math.log(most) + 9 * spread
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut_mean(middle) < mean else (low, middle)
    return high


def one_generation(max_tokens: int) -> Protocol:
    def next_action(trajectory: Trajectory) -> Action:
        return Stop(StopReason.ANSWERED) if trajectory.turns else Generate(TurnKind.ATTEMPT, max_tokens)

    def receive(trajectory: Trajectory, sampled: Sampled) -> None:
        trajectory.turns.append(Turn(TurnKind.ATTEMPT, sampled.token_ids))

    return Protocol(next_action, receive)


def simulate(cluster: Cluster) -> Shares:
    """Raises ValueError for a cluster without workers or prompts, and for a mean length that none may have."""
    if min(cluster.workers, cluster.prompts, cluster.group, cluster.steps) < 1:
        raise ValueError(f"a cluster needs workers, prompts, a group and steps: {cluster}")
    if cluster.mean_tokens >= cluster.max_tokens:
        raise ValueError(f"a mean of {cluster.mean_tokens:g} tokens needs longer ones than {cluster.max_tokens}")
    return Simulation(cluster).run()
