"""Worker processes that can be killed, and the comparisons that wait for them."""

import json
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from srl.reward.template import START_S, Template
from srl.trajectory import Outcome

PATIENCE = 4  # deadlines, which are of processor time, before a worker is killed that has not answered, on a busy machine too
IN_FLIGHT = 2  # comparisons that a worker has: the next one waits in its pipe
TRIES = 4  # at a comparison whose worker died: then it is what kills them
NEAR = 32  # comparisons among which a worker looks for one whose gold it has parsed
FAILED_STARTS = 20  # in a row


class Comparison(NamedTuple):
    """A normalised answer (None to check only that the gold can be read) and gold, with the absolute error allowed."""

    answer: str | None
    gold: str
    error: float = 0.0


class Reply(NamedTuple):
    """`outcome` is None for a gold that cannot be read; `message` then says why."""

    outcome: Outcome | None
    ms: float
    message: str = ""


class Batch:
    """Comparisons of one call, by index: those that wait, how often each was tried, and the replies."""

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self.comparisons = comparisons
        self.waiting = deque(range(len(comparisons)))
        self.tries = [0] * len(comparisons)
        self.replies: dict[int, Reply] = {}

    def take(self, gold: str | None, of_others: set[str | None]) -> int:
        """The next that waits; of the first few rather one with this gold, or else one whose gold no other worker has parsed."""
        near = [self.comparisons[index].gold for index in islice(self.waiting, NEAR)]
        place = near.index(gold) if gold in near else next((i for i, found in enumerate(near) if found not in of_others), 0)
        index = self.waiting[place]
        del self.waiting[place]
        return index

    def again(self, index: int, otherwise: Reply) -> None:
        """Let it wait for another try; after too many it has this reply."""
        self.tries[index] += 1
        if self.tries[index] < TRIES:
            self.waiting.appendleft(index)
        else:
            self.replies[index] = otherwise


class Worker:
    """One process, what it was sent and has not answered, and since when it has been at the first of these."""

    def __init__(self, template: Template) -> None:
        """Raises OSError as the template does."""
        self.template = template
        self.connection, self.pid = template.fork()
        self.sent: deque[int] = deque()
        self.gold: str | None = None  # of the last comparison sent
        self.since = time.monotonic()
        self.ready = False  # it says so before it reads anything
        self.answered = 0
        self.rest = b""

    def send(self, index: int, comparison: Comparison) -> bool:
        """False if the process is dead."""
        try:
            self.connection.sendall(json.dumps(comparison._asdict()).encode() + b"\n")
        except OSError:
            return False
        if not self.sent:
            self.since = time.monotonic()
        self.sent.append(index)
        self.gold = comparison.gold
        return True

    def replies(self) -> tuple[list[dict[str, Any]], bool]:
        """What it has written since the last call, and whether it still runs."""
        try:
            data = self.connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return [], True
        except ConnectionError:  # it left something unread
            data = b""
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines], bool(data)

    def kill(self) -> int | None:
        """Its exit code; None where that died with its template."""
        self.connection.close()
        try:
            return self.template.end(self.pid)
        except OSError:
            self.template.kill()
            return None


class WorkerPool:
    """`compare` may be called from any thread; calls are served one after the other. Processes start with the first call."""

    def __init__(self, processes: int, deadline_s: float, memory_mib: int, recycle_after: int) -> None:
        self.processes, self.deadline_s, self.memory_mib, self.recycle_after = processes, deadline_s, memory_mib, recycle_after
        self.template: Template | None = None
        self.workers: list[Worker] = []
        self.killed = 0  # at the deadline
        self.died = 0  # of anything else
        self.failed_starts = 0
        self.lock = threading.Lock()

    def compare(self, comparisons: Sequence[Comparison]) -> list[Reply]:
        """One reply for each. Raises RuntimeError when processes do not start."""
        with self.lock:
            try:
                return self._compare(comparisons)
            except BaseException:
                self._end()  # their replies would be taken for the next call's
                raise

    def warm(self) -> None:
        """Start all processes and wait until they are ready. Raises RuntimeError as `compare`."""
        with self.lock:
            while len(self.workers) < self.processes:
                self.workers.append(self._worker())
            while not all(worker.ready for worker in self.workers):
                self._step(Batch([]))

    def _compare(self, comparisons: Sequence[Comparison]) -> list[Reply]:
        batch = Batch(comparisons)
        while len(batch.replies) < len(comparisons):
            self._feed(batch)
            self._step(batch)
        return [batch.replies[index] for index in range(len(comparisons))]

    def _step(self, batch: Batch) -> None:
        """Wait for the workers, take what they say, replace those that are dead or late."""
        self._wait()
        for place, worker in enumerate(self.workers):
            alive = self._collect(worker, batch)
            late = self._late(worker)
            if alive and not late:
                continue
            # The kernel ends one that is past its processor time and cannot stop itself.
            late |= worker.kill() == -signal.SIGXCPU
            self._account(worker, late, batch)
            self.workers[place] = self._worker()

    def _worker(self) -> Worker:
        """Raises RuntimeError when there is no template to be had, or it gets a known pair wrong."""
        while True:
            try:
                self.template = self.template or Template(self.deadline_s, self.memory_mib)
                return Worker(self.template)
            except OSError as error:
                if self.template:
                    self.template.kill()
                    self.template = None
                self._failed_start(error)

    def _failed_start(self, cause: object) -> None:
        self.failed_starts += 1
        if self.failed_starts >= FAILED_STARTS:
            raise RuntimeError(f"{FAILED_STARTS} grading workers in a row died or hung at their start ({cause})")

    def close(self) -> None:
        with self.lock:
            self._end()

    def _end(self) -> None:
        if self.template:
            self.template.kill()
            self.template = None
        for worker in self.workers:
            worker.connection.close()
        self.workers.clear()

    def _feed(self, batch: Batch) -> None:
        """Keep every worker busy; one that has answered enough is replaced when it has nothing left to answer."""
        waiting = batch.waiting
        while len(self.workers) < min(self.processes, len(waiting)):
            self.workers.append(self._worker())
        share = -(-len(waiting) // max(1, len(self.workers)))
        for place, worker in enumerate(self.workers):
            if worker.answered >= self.recycle_after and not worker.sent:
                worker.kill()
                self.workers[place] = self._worker()
            elif worker.answered < self.recycle_after:
                while waiting and len(worker.sent) < min(IN_FLIGHT, share):
                    index = batch.take(worker.gold, {other.gold for other in self.workers if other is not worker})
                    if not worker.send(index, batch.comparisons[index]):
                        waiting.appendleft(index)
                        break

    def _wait(self) -> None:
        """Until a worker writes something, dies, or is late."""
        now = time.monotonic()
        limits = [worker.since + self._limit(worker) for worker in self.workers if worker.sent or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.connection, selectors.EVENT_READ)
            selector.select(max(0.0, min(limits, default=now) - now))

    def _collect(self, worker: Worker, batch: Batch) -> bool:
        """Take its replies; whether it still runs."""
        lines, alive = worker.replies()
        for line in lines:
            worker.since = time.monotonic()
            if "ready" in line:
                worker.ready, self.failed_starts = True, 0
                continue
            worker.answered += 1
            index, outcome = worker.sent.popleft(), line.get("outcome")
            batch.replies[index] = Reply(outcome and Outcome(outcome), line.get("ms", 0.0), line.get("invalid_gold", ""))
        return alive

    def _late(self, worker: Worker) -> bool:
        return (bool(worker.sent) or not worker.ready) and time.monotonic() > worker.since + self._limit(worker)

    def _limit(self, worker: Worker) -> float:
        return PATIENCE * self.deadline_s if worker.ready else START_S

    def _account(self, worker: Worker, late: bool, batch: Batch) -> None:
        """What a dead worker had not answered waits again; the first of it, which it was at, may be what killed it."""
        unanswered = list(worker.sent)
        if not worker.ready:
            self._failed_start(f"process {worker.pid}")
        elif late and unanswered:
            self.killed += 1
            batch.replies[unanswered.pop(0)] = Reply(Outcome.TIMEOUT, 1000 * self._limit(worker))
        else:
            self.died += 1
            if unanswered:
                batch.again(unanswered.pop(0), Reply(Outcome.UNPARSABLE, 0.0))
        batch.waiting.extendleft(reversed(unanswered))
