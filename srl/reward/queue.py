"""The driver's side of grading: requests go to actors as these become free, grades are taken when they are wanted."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import ray
from ray.actor import ActorHandle

from srl.reward.rules import GradeRequest
from srl.trajectory import Outcome

LARGEST_CHUNK = 256  # requests per call: what a restarted actor does again
CALLS_HELD = 2  # by an actor, which then never waits for the driver


class GradeQueue:
    """For one thread. Nothing moves on this side between calls, but actors go on with what they were handed."""

    def __init__(self, actors: Sequence[ActorHandle]):
        self.actors = actors
        self.asked: dict[str, GradeRequest] = {}  # by id, until its grade is taken
        self.waiting: deque[GradeRequest] = deque()
        self.running: dict[ray.ObjectRef, int] = {}  # calls, with the actor that each went to
        self.grades: dict[str, Outcome] = {}

    def put(self, requests: Iterable[GradeRequest]) -> None:
        """Ask for grades and return at once; what was asked for before and not taken yet is not asked for again.

        Raises ValueError when one of these ids was given another answer or gold, and for a gold that an actor could not read.
        """
        for request in requests:
            if request[0] not in self.asked:
                self.asked[request[0]] = request
                self.waiting.append(request)
            elif self.asked[request[0]] != request:
                raise ValueError(f"two answers to grade have the id {request[0]!r}")
        self._move(0.0)

    def take(self, requests: Sequence[GradeRequest], timeout_s: float) -> dict[str, Outcome]:
        """Outcome by request id, of what was put before and of what was not.

        Waits `timeout_s` seconds at most, then raises TimeoutError. Raises what `put` raises.
        """
        self.put(requests)
        deadline = time.monotonic() + timeout_s
        while missing := [request[0] for request in requests if request[0] not in self.grades]:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError(
                    f"waited {timeout_s:g} s (reward.timeout_s) for {len(requests)} grades from {len(self.actors)} reward "
                    f"actors, {len(missing)} did not come; the first of them is {missing[0]!r}"
                )
            self._move(left)
        for request in requests:
            self.asked.pop(request[0], None)
        return {request_id: self.grades.pop(request_id) for request_id in {request[0]: None for request in requests}}

    def _move(self, timeout_s: float) -> None:
        """Take what has come back, waiting for a reply at most `timeout_s` seconds, and hand out what waits."""
        self._hand_out()
        if not self.running:
            return
        ray.wait(list(self.running), timeout=timeout_s)
        done, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for call in done:
            del self.running[call]
            self.grades |= ray.get(call)
        self._hand_out()

    def _hand_out(self) -> None:
        """Chunks get smaller towards the end, so that no actor is left with much while the others have nothing."""
        held = Counter(self.running.values())
        while self.waiting:
            index = min(range(len(self.actors)), key=lambda index: held[index])
            if held[index] == CALLS_HELD:
                return
            size = min(LARGEST_CHUNK, math.ceil(len(self.waiting) / (CALLS_HELD * len(self.actors))))
            call = self.actors[index].grade.remote([self.waiting.popleft() for _ in range(size)])
            self.running[call] = index
            held[index] += 1


def grade_all(actors: Sequence[ActorHandle], requests: Sequence[GradeRequest], timeout_s: float) -> dict[str, Outcome]:
    """Outcome by request id, from all actors together; waits and raises as `GradeQueue.take` does."""
    return GradeQueue(actors).take(requests, timeout_s)
