"""Which group goes to which worker next. Pure bookkeeping: no Ray, no clock."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from srl.rollout.thread import Job
from srl.trajectory import Trajectory


@dataclass(slots=True)
class Order:
    """A job of the pool. `ticket` names who asked for it; `length` is the expected number of tokens of its trajectories."""

    job: Job
    ticket: int
    length: tuple[float, int] = (0.0, 0)
    failures: int = 0

    @property
    def size(self) -> int:
        return len(self.job.trajectories)

    @property
    def ids(self) -> list[str]:
        return [trajectory.id for trajectory in self.job.trajectories]


class Lengths:
    """What to expect of a prompt: the tokens its trajectories had last time, else the mean of all seen; longer prompts first.

    What goes on from given turns is of another kind, and its prompt comes once: it is not remembered.
    """

    def __init__(self) -> None:
        self.by_prompt: dict[str, float] = {}
        self.tokens = self.trajectories = 0

    def expected(self, group: list[Trajectory]) -> tuple[float, int]:
        mean = self.tokens / max(1, self.trajectories)
        return self.by_prompt.get(group[0].prompt_id, mean), len(group[0].prompt_token_ids)

    def seen(self, group: list[Trajectory]) -> None:
        if any(turn.token_ids and not turn.sampled for turn in group[0].turns[:1]):
            return
        tokens = sum(trajectory.sampled_tokens() for trajectory in group)
        self.by_prompt[group[0].prompt_id] = tokens / len(group)
        self.tokens, self.trajectories = self.tokens + tokens, self.trajectories + len(group)


class Backlog:
    """Orders that wait for a worker, longest first: what is begun last should be short, or all wait for it at the end."""

    def __init__(self, retries: int, most_per_worker: int):
        self.retries, self.most_per_worker = retries, most_per_worker
        self.orders: list[Order] = []

    def put(self, order: Order) -> None:
        bisect.insort(self.orders, order, key=lambda other: (-other.length[0], -other.length[1]))

    def forget(self, ticket: int) -> list[Order]:
        """Drop the orders of a ticket and return them."""
        dropped = [order for order in self.orders if order.ticket == ticket]
        self.orders = [order for order in self.orders if order.ticket != ticket]
        return dropped

    def deal(self, running: Mapping[int, list[Order]]) -> list[tuple[int, Order]]:
        """(worker, order) to begin now, given what each worker that is up runs: always to the one with least to do.

        An order on its last try runs alone on its worker, so that a prompt that kills engines takes no other with it.
        """
        load = {worker: sum(order.size for order in orders) for worker, orders in running.items()}
        for worker, orders in running.items():
            if any(self._last_try(order) for order in orders):
                del load[worker]
        dealt: list[tuple[int, Order]] = []
        for order in sorted(self.orders, key=self._last_try, reverse=True):
            worker = min(load, key=load.__getitem__, default=None)
            if worker is None or load[worker] >= self.most_per_worker:
                break
            alone = self._last_try(order)
            if not (alone and load[worker]):
                dealt.append((worker, order))
                load[worker] += order.size
            if alone:
                del load[worker]  # this order's own, or left to run empty for it
        chosen = {id(order) for _, order in dealt}
        self.orders = [order for order in self.orders if id(order) not in chosen]
        return dealt

    def _last_try(self, order: Order) -> bool:
        return order.failures > 0 and order.failures >= self.retries
