"""The loop on a thread of its own, so that the engine works on while the worker talks to the driver."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from srl.protocols.action import Protocol
from srl.rollout.loop import Arriving, TrajectoryLoop, engine_call
from srl.trajectory import Trajectory

IDLE_S = 0.5  # longest nap of an idle loop


class EngineHangs(RuntimeError):
    """There is work, and no engine step has ended for too long."""


@dataclass(frozen=True, slots=True)
class Job:
    """Trajectories that go to one worker together and come back together: a group, all samples of one prompt."""

    id: str
    protocol: str
    trajectories: list[Trajectory]
    temperature: float


@dataclass(frozen=True, slots=True)
class Load:
    """Weights on their way in. With `finish_first`, what runs is finished under the old ones."""

    buckets: Arriving
    version: int
    finish_first: bool
    done: Future


class LoopThread:
    """Its methods may be called from any thread. Once the loop has raised, every call raises the same error."""

    def __init__(self, make_loop: Callable[[], TrajectoryLoop], protocol: Callable[[str], Protocol], hang_s: float):
        """Returns when the engine is up; raises what `make_loop` raises. `hang_s`: see EngineHangs."""
        self.protocol, self.hang_s = protocol, hang_s
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.finished: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.jobs: set[str] = set()
        self.loads: set[Future] = set()
        self.load: Load | None = None
        self.error: Exception | None = None
        self.last_step, self.loading = time.monotonic(), False
        started: Future[TrajectoryLoop] = Future()
        threading.Thread(target=self._live, args=(make_loop, started), daemon=True, name="rollout-loop").start()
        self.loop = started.result()

    def add(self, jobs: list[Job]) -> None:
        """Run these jobs; `collect` returns them. A job that runs already is not begun again."""
        self._check()
        for job in jobs:
            protocol = self.protocol(job.protocol)
            self.inbox.put(lambda job=job, protocol=protocol: self._begin(job, protocol))

    def collect(self, timeout_s: float) -> list[Job]:
        """The jobs of `add` that are done; waits for one, `timeout_s` at most. Raises EngineHangs and what the loop raised."""
        jobs: list[Job] = []
        deadline = time.monotonic() + timeout_s
        while not jobs and time.monotonic() < deadline:
            self._check()
            try:
                jobs.append(self.finished.get(timeout=min(IDLE_S, timeout_s)))
            except queue.Empty:
                continue
        while not self.finished.empty():
            jobs.append(self.finished.get())
        return jobs

    def load_weights(self, buckets: Arriving, version: int, finish_first: bool) -> dict[str, float]:
        """Returns when the engine holds these weights: what it says about the seconds of the parts of the way."""
        done: Future = Future()
        self.loads.add(done)
        self._check()  # from here on an error of the loop ends it too
        self.inbox.put(lambda: self._prepare(Load(buckets, version, finish_first, done)))
        try:
            return done.result()
        finally:
            self.loads.discard(done)

    def sleep(self) -> None:
        """Returns when the engine has given its memory back; the next weights wake it. Raises RuntimeError when there is work."""
        done: Future = Future()
        self.loads.add(done)
        self._check()
        self.inbox.put(lambda: self._sleep(done))
        try:
            done.result()
        finally:
            self.loads.discard(done)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
        stuck = time.monotonic() - self.last_step
        if self.loop.busy and not self.loading and stuck > self.hang_s:
            raise EngineHangs(f"rollout.hang_s={self.hang_s:g}: no engine step has ended for {stuck:.0f} s")

    def _live(self, make_loop: Callable[[], TrajectoryLoop], started: Future) -> None:
        try:
            loop = make_loop()
        except Exception as error:
            started.set_exception(error)
            return
        self.loop, self.last_step = loop, time.monotonic()  # a start or a load may take longer than any step
        started.set_result(loop)
        try:
            while True:
                self._obey(wait=not loop.busy and self.load is None)
                if self.load and not (self.load.finish_first and loop.active):
                    self._load(self.load)
                loop.step()
                self.last_step = time.monotonic()
        except Exception as error:
            self.error = error
            for load in [load for load in self.loads if not load.done()]:
                load.set_exception(error)

    def _obey(self, wait: bool) -> None:
        """Do what was asked from other threads since the last step."""
        try:
            self.inbox.get(timeout=IDLE_S)() if wait else None
            while True:
                self.inbox.get_nowait()()
        except queue.Empty:
            return

    def _begin(self, job: Job, protocol: Protocol) -> None:
        # A call to a worker that just died reaches the next one, and its job comes there once more.
        if job.id in self.jobs:
            return
        self.jobs.add(job.id)
        missing = len(job.trajectories)

        def one_ended() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                self.jobs.remove(job.id)
                self.finished.put(job)

        for trajectory in job.trajectories:
            self.loop.add(trajectory, protocol, job.temperature, one_ended)

    def _prepare(self, load: Load) -> None:
        if self.load is not None:
            load.done.set_exception(RuntimeError(f"weights {self.load.version} are still being loaded"))
            return
        self.load, self.loop.paused = load, True

    def _load(self, load: Load) -> None:
        self.loading = True
        try:
            seconds = self.loop.load_weights(load.buckets, load.version)
        finally:
            self.last_step = time.monotonic()
            self.loading, self.load, self.loop.paused = False, None, False
        load.done.set_result(seconds or {})

    def _sleep(self, done: Future) -> None:
        if self.loop.busy:
            done.set_exception(RuntimeError("an engine that has work cannot sleep"))
            return
        with engine_call():
            self.loop.engine.sleep()
        done.set_result(None)
