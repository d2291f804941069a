"""Groups on their way from the stream of problems to a training step: admitted to the pool, sampled, chosen."""

import time
from collections import deque
from collections.abc import Iterable

from srl.driver.ledger import Ledger, Stream
from srl.driver.sampling import new_group, sample_mixed
from srl.driver.session import Session
from srl.trajectory import StopReason, Trajectory
from srl.weights.bundle import Bundle

REPLACED = "replaced"  # what became of a position whose group taught nothing
WAIT_S = 5.0  # between two looks at the deadline


class Flow:
    """The ledger says who may go on; the pool does the work, also while the driver trains."""

    def __init__(self, session: Session, stream: Stream, ledger: Ledger):
        self.session, self.stream, self.ledger = session, stream, ledger
        self.sampled: dict[int, list[Trajectory]] = {}
        self.waiting: deque[list[Trajectory]] = deque()
        self.life = 0  # a group that was begun before a restart comes back under an id of an earlier life

    @property
    def end(self) -> int:
        """Positions of the stream that all steps take."""
        settings = self.session.config.rl
        return settings.steps * settings.prompts + self.ledger.settled[REPLACED]

    def admit(self, step: int, previous: Bundle | None = None) -> None:
        """Begin a group for each free slot. With `previous`, part of each is sampled by those weights, here and now."""
        groups = [self._new_group(position) for position in self.ledger.admit(step, self.end)]
        if previous is None:
            self.waiting += groups
            self._submit()
        else:
            self._receive(sample_mixed(self.session, groups, previous))

    def begin_again(self, step: int) -> None:
        """Sample what the ledger has in flight: its trajectories are lost."""
        self.sampled.clear()
        self.waiting = deque(self._new_group(position) for position in self.ledger.begin_again(step))

    def new_life(self, step: int) -> None:
        """Begin again: what the pool still works on, if anything, comes back under ids of an earlier life and is not wanted.

        Without that, the ids and so the seeds stay what they were.
        """
        if self.session.pool().held.total():
            self.life += 1
        self.session.forget_grades()
        self.begin_again(step)

    def close(self) -> None:
        """Drop what was begun and no step will train, after an early stop: it would hold up and slow down what comes next."""
        if self.session.pool().held.total():
            self.session.stop_engines()

    def put_back(self, groups: dict[int, list[Trajectory]]) -> None:
        """Taken, but not trained."""
        self.sampled |= groups

    def replace(self, positions: Iterable[int]) -> None:
        """These were taken and will not be trained: as many more of the stream are admitted next."""
        self.ledger.settle(dict.fromkeys(positions, REPLACED))

    def take(self, step: int) -> dict[int, list[Trajectory]]:
        """The groups that this step trains, by position, in order; waits until they are sampled.

        Raises TimeoutError when no group ends for as long as the pool may need for all tries of one, with an engine's start each;
        RuntimeError when none is on its way.
        """
        rollout = self.session.config.rollout
        limit = (rollout.retries + 1) * (rollout.timeout_s + rollout.start_timeout_s)
        while (chosen := self.ledger.choose(step, self.sampled)) is None:
            self._submit()
            if not self.session.pool().held.total():
                lost = sorted(self.ledger.in_flight.keys() - self.sampled)
                raise RuntimeError(f"step {step}: positions {lost} of the ledger are in flight, but nobody samples them")
            deadline = time.monotonic() + limit
            while not (groups := self.session.pool().completed(WAIT_S)):
                if time.monotonic() > deadline:
                    why = "rollout.retries + 1 times rollout.timeout_s and start_timeout_s"
                    raise TimeoutError(f"step {step} waited for a group for {limit:g} s, {why}")
            self._receive(groups)
        return {position: self.sampled.pop(position) for position in chosen}

    def _receive(self, groups: list[list[Trajectory]]) -> None:
        """Keep what was begun in this life, and have it graded while the others are sampled."""
        for group in groups:
            if group[0].id.startswith(self._prefix()):
                self.sampled[position_of(group)] = group
                self.session.begin_grading(group)

    def _prefix(self) -> str:
        return f"rl{self.life or ''}/"

    def _submit(self) -> None:
        """Hand over what the pool has room for; a single group always fits into an empty one."""
        pool = self.session.pool()
        while self.waiting and (len(self.waiting[0]) <= pool.room() or not pool.held.total()):
            pool.submit(self.session.config.own_protocol, [self.waiting.popleft()], 1.0)

    def _new_group(self, position: int) -> list[Trajectory]:
        return new_group(self.session, self.stream.at(position), f"{self._prefix()}{position}")


def position_of(group: list[Trajectory]) -> int:
    return int(group[0].id.split("/")[1])


def has_failed(group: list[Trajectory]) -> bool:
    return any(trajectory.stop_reason is StopReason.FAILED for trajectory in group)
