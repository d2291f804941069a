"""Which prompts of the endless stream are waiting, in flight or settled: every one is trained exactly once, in bounded time."""

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from srl.tasks.problems import Problem


@dataclass
class Ledger:
    """Positions of the stream, in slots. Pure: it neither samples nor waits.

    There are `ahead + 1` times `batch` slots. A position takes one when it is admitted and gives it back when it is settled,
    after the weights it was trained into have been pulled. A position is trained at most `ahead` steps after it was admitted
    (test_ledger.py has the proof); with `ahead` 0 each step trains what it admitted.
    """

    batch: int
    ahead: int
    next: int = 0  # the first position that was never admitted
    in_flight: dict[int, int] = field(default_factory=dict)  # position -> step of its admission
    settled: Counter[str] = field(default_factory=Counter)  # outcome -> positions

    def admit(self, step: int, end: int) -> list[int]:
        """Fill the free slots with positions before `end`; those that take one, in order."""
        free = (self.ahead + 1) * self.batch - len(self.in_flight)
        admitted = list(range(self.next, min(self.next + free, end)))
        self.in_flight |= dict.fromkeys(admitted, step)
        self.next += len(admitted)
        return admitted

    def choose(self, step: int, finished: Collection[int]) -> list[int] | None:
        """The positions that this step trains, in order; None while too few, or not enough of the old ones, are finished.

        What was admitted up to step t has t + ahead - step later steps in which it may still be trained; of what these cannot
        hold, enough is taken now. Beyond that, whatever is finished will do.
        """
        wanted = min(self.batch, len(self.in_flight))
        # In flight in the order of admission, which is that of the stream: a dictionary keeps it.
        ready = [position for position in self.in_flight if position in finished]
        if len(ready) < wanted:
            return None
        taken = 0
        for limit in sorted(set(self.in_flight.values())):
            old = sum(admitted <= limit for admitted in self.in_flight.values())
            old_ready = sum(self.in_flight[position] <= limit for position in ready)
            taken = max(taken, old - (limit + self.ahead - step) * self.batch)
            if old_ready < taken:
                return None
        return ready[:wanted]

    def settle(self, outcomes: dict[int, str]) -> None:
        """These positions are done with, each with its outcome: trained, filtered, failed, or replaced by another position."""
        for position, outcome in outcomes.items():
            del self.in_flight[position]
            self.settled[outcome] += 1

    def begin_again(self, step: int) -> list[int]:
        """After a restart: what was in flight is sampled anew, by the current policy."""
        self.in_flight = dict.fromkeys(self.in_flight, step)
        return list(self.in_flight)

    def to_record(self) -> dict[str, Any]:
        return {"next": self.next, "in_flight": list(self.in_flight.items()), "settled": dict(self.settled)}

    def restore(self, record: dict[str, Any]) -> None:
        """Inverse of `to_record`."""
        self.next, self.in_flight = record["next"], dict(map(tuple, record["in_flight"]))
        self.settled = Counter(record["settled"])


class Stream:
    """The problems without end: every one once, in an order of its own, before any comes again."""

    def __init__(self, problems: list[Problem], seed: int):
        self.problems, self.seed = problems, seed
        self.epoch, self.order = -1, problems

    def at(self, position: int) -> Problem:
        epoch, index = divmod(position, len(self.problems))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = random.Random(f"{self.seed} rl {epoch}").sample(self.problems, len(self.problems))
        return self.order[index]
