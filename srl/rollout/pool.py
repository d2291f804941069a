"""All rollout workers behind one face: hand in groups, get each back when it is finished, whatever happens to workers."""

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup

from srl.config import Config
from srl.rollout.backlog import Backlog, Lengths, Order
from srl.rollout.fleet import Event, Finished, Fleet, Lost
from srl.rollout.recorded import append_trajectories
from srl.rollout.thread import Job
from srl.rollout.worker import MakeEngine, configured_engine
from srl.trajectory import StopReason, Trajectory
from srl.weights.bundle import Bundle
from srl.weights.stream import Stream

Group = list[Trajectory]

AHEAD = 1.5  # a worker is handed this many times what it runs at once, so that it never waits for the driver
NEWS_S = 1.0  # longest sleep between two looks at the deadlines
SUBMITTED = 0  # the ticket of `submit`; each stream has its own
NOBODY = -1  # of what a worker still runs and nobody waits for

log = logging.getLogger(__name__)


class PoolFull(RuntimeError):
    """The groups are more than the pool may hold; take finished ones first."""


class RolloutPool:
    """Not for several threads. Nothing moves on the driver's side between calls, but workers go on with what they were handed.

    What is promised:
    - A group, all samples of one prompt, goes to one worker and comes back once, when its last trajectory has ended, with every
      `stop_reason` set; the objects are new ones with the ids that were given. Longer work is begun first.
    - Every turn records the weight version that its first token was sampled with. A trajectory begins with the version of the
      last `load_weights` that had returned, or a later one; `rollout.weight_update` says what happens to those that run.
    - A worker that dies, hangs or loses its node loses nothing: its groups begin again elsewhere, up to `rollout.retries` times
      each, and are then returned with the turns they came with and the reason FAILED. A worker that comes back loads the current
      weights first. As seeds belong to trajectories, a repeated group is the same group.
    - Of those who ask, `submit` or one `stream`, each is held at most `rollout.max_held` trajectories and what completes a group.
    """

    def __init__(
        self,
        config: Config,
        reward_actors: Sequence[ActorHandle] = (),
        make_engine: MakeEngine = configured_engine,
        shared: PlacementGroup | None = None,
    ):
        """Protocols that ask for the gold answer need `reward_actors`; `shared` is room with the learners.

        Raises ConfigError when not all workers start.
        """
        self.config = config
        self.fleet = Fleet(config, reward_actors, make_engine, shared)
        rollout = config.rollout
        self.backlog = Backlog(rollout.retries, max(1, round(AHEAD * rollout.max_sequences)))
        self.lengths = Lengths()
        self.most_held = rollout.max_held or 4 * rollout.workers * rollout.max_sequences
        self.held: Counter[int] = Counter()  # trajectories by ticket
        self.finished: dict[int, deque[Group]] = defaultdict(deque)
        self.ids: set[str] = set()
        self.left: set[str] = set()  # ids of what workers still run and nobody waits for
        self.jobs = self.tickets = 0
        self.counts: Counter[str] = Counter()

    @property
    def version(self) -> int:
        return self.fleet.version

    def room(self) -> int:
        """How many more trajectories `submit` takes now."""
        return max(0, self.most_held - self.held[SUBMITTED])

    def submit(self, protocol: str, groups: Iterable[Group], temperature: float) -> None:
        """Take on groups and return at once; `completed` gives them back.

        Raises PoolFull, and takes none, when they have more trajectories than there is `room` (a single group always fits into
        an empty pool), ValueError for an id that the pool holds already. An id that a closed stream has left with a worker is
        waited for.
        """
        groups = list(groups)
        size = sum(map(len, groups))
        if size > self.room() and (self.held[SUBMITTED] or len(groups) > 1):
            raise PoolFull(f"{size} trajectories, room for {self.room()} of rollout.max_held={self.most_held}")
        for group in groups:
            self._take_on(SUBMITTED, protocol, group, temperature)
        self._deal()

    def completed(self, timeout_s: float) -> list[Group]:
        """Submitted groups that have finished since the last call; waits for one, `timeout_s` seconds at most.

        Returns [] after that time, and at once when nothing submitted is unfinished.
        """
        deadline = time.monotonic() + timeout_s
        self._move(0.0)
        while not self.finished[SUBMITTED] and self.held[SUBMITTED] and (left := deadline - time.monotonic()) > 0:
            self._move(left)
        return list(self._hand_out(SUBMITTED))

    def stream(self, protocol: str, groups: Iterable[Group], temperature: float) -> Iterator[Group]:
        """Groups as they finish. The next ones are drawn from `groups` only when there is room for them.

        What is unfinished when the iterator is closed, or raises, is dropped. Who then asks for ids that a worker has begun waits
        until it is done with them.
        """
        self.tickets += 1
        ticket, source, drawn = self.tickets, iter(groups), True
        try:
            while drawn or self.held[ticket]:
                while drawn and self.held[ticket] < self.most_held:
                    if drawn := (group := next(source, None)) is not None:
                        self._take_on(ticket, protocol, group, temperature)
                self._move(NEWS_S)
                yield from self._hand_out(ticket)
        finally:
            self._forget(ticket)

    def generate(self, protocol: str, trajectories: Sequence[Trajectory], temperature: float) -> list[Trajectory]:
        """Run all trajectories, each a group of its own; the order given is kept."""
        groups = sorted(([trajectory] for trajectory in trajectories), key=self.lengths.expected, reverse=True)
        results: dict[str, Trajectory] = {}
        for (trajectory,) in self.stream(protocol, groups, temperature):
            results[trajectory.id] = trajectory
        return [results[trajectory.id] for trajectory in trajectories]

    def load_weights(self, weights: Bundle | Stream) -> dict[str, float]:
        """Give all workers these weights; returns the seconds of the slowest by part. Groups that finish meanwhile are kept.

        Workers that are down take them when they are back. A worker that does not within `rollout.timeout_s` is replaced.
        Raises what the learners raise while they hand a stream over.
        """
        self.fleet.load_weights(weights)
        while self.fleet.loading():
            self._move(NEWS_S)
        parts = {name for slot in self.fleet.slots for name in slot.load_seconds}
        return {name: max(slot.load_seconds.get(name, 0.0) for slot in self.fleet.slots) for name in sorted(parts)}

    def sleep(self) -> None:
        """All engines give their memory back until the next `load_weights`, also those that only come up now.

        What they have is finished first, what waits here is begun when they are awake again. Raises as `Fleet.sleep`.
        """
        self._hear(self.fleet.sleep())

    def metrics(self) -> dict[str, int]:
        """Counts since the start: `deaths` and `hangs` of workers, `retried` groups, `failed` trajectories; `sampled_tokens`,
        `prompt_tokens` of all turns and how many of them were `cached_tokens`, also of work that was lost.
        """
        counts = self.fleet.counts + self.counts
        for slot in self.fleet.slots:
            counts.update(slot.counts)
        names = ("deaths", "hangs", "retried", "failed", "sampled_tokens", "prompt_tokens", "cached_tokens")
        return {name: counts[name] for name in names}

    def close(self) -> None:
        self.fleet.close()

    def _take_on(self, ticket: int, protocol: str, group: Group, temperature: float) -> None:
        if not group:
            raise ValueError("a group without trajectories")
        while not self.left.isdisjoint(trajectory.id for trajectory in group):  # an engine cannot run two of one id
            self._move(NEWS_S)
        for trajectory in group:
            if trajectory.id in self.ids:
                raise ValueError(f"two trajectories have the id {trajectory.id}")
            self.ids.add(trajectory.id)
        self.jobs += 1
        job = Job(str(self.jobs), protocol, list(group), temperature)
        self.backlog.put(Order(job, ticket, self.lengths.expected(group)))
        self.held[ticket] += len(group)

    def _move(self, timeout_s: float) -> None:
        """Hand out work, then take what happened; waits for news at most `timeout_s`."""
        self._deal()
        self._hear(self.fleet.events(min(timeout_s, NEWS_S)))
        self._deal()

    def _hear(self, events: Iterator[Event]) -> None:
        for event in events:
            if isinstance(event, Finished):
                self.lengths.seen(event.job.trajectories)
                self._finish(event.order, event.job.trajectories)
            else:
                self._try_again(event)

    def _deal(self) -> None:
        by_worker: dict[int, list[Order]] = defaultdict(list)
        for worker, order in self.backlog.deal(self.fleet.running()):
            by_worker[worker].append(order)
        for worker, orders in by_worker.items():
            self.fleet.assign(worker, orders)

    def _try_again(self, lost: Lost) -> None:
        order = lost.order
        if order.ticket == NOBODY:
            self.left.difference_update(order.ids)
            return
        order.failures += 1
        if order.failures <= self.config.rollout.retries:
            self.counts["retried"] += 1
            self.backlog.put(order)
            return
        group = order.job.trajectories
        self.counts["failed"] += len(group)
        log.warning("prompt %s failed: tried %d times, last: %s", group[0].prompt_id, order.failures, lost.cause)
        for trajectory in group:
            trajectory.stop_reason = StopReason.FAILED
        self._finish(order, group)

    def _finish(self, order: Order, group: Group) -> None:
        if self.config.rollout.record:
            append_trajectories(Path(self.config.rollout.record), group)
        if order.ticket == NOBODY:
            self.left.difference_update(order.ids)
        else:
            self.finished[order.ticket].append(group)

    def _hand_out(self, ticket: int) -> Iterator[Group]:
        """Finished groups; each stays counted as held until it is taken."""
        while self.finished[ticket]:
            group = self.finished[ticket].popleft()
            self.held[ticket] -= len(group)
            self.ids.difference_update(trajectory.id for trajectory in group)
            yield group

    def _forget(self, ticket: int) -> None:
        for order in self.backlog.forget(ticket):
            self.ids.difference_update(order.ids)
        for group in self.finished.pop(ticket, ()):
            self.ids.difference_update(trajectory.id for trajectory in group)
        for order in self.fleet.orders():
            if order.ticket == ticket:
                order.ticket = NOBODY
                self.ids.difference_update(order.ids)
                self.left.update(order.ids)
        self.held.pop(ticket, None)
