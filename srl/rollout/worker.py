"""The rollout actor: a thin Ray shell around an engine, a tokenizer and the loop."""

import functools
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray import cloudpickle

from srl.config import Config
from srl.observe.pulse import start_pulse
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import build_protocol
from srl.rollout.engine import Engine
from srl.rollout.judges import make_judges
from srl.rollout.loop import StepEngine, TrajectoryLoop, engine_call, limits
from srl.rollout.recorded import RecordedEngine, read_trajectories
from srl.rollout.thread import Job, LoopThread
from srl.weights.bundle import Bundle, receive
from srl.weights.feed import Feed
from srl.weights.stream import Link

CALLS_AT_ONCE = 4  # ready, add, collect, one about weights
BEGIN_S = 0.1  # between two looks whether a load has ended before it began

MakeEngine = Callable[[Config, Chat], StepEngine]


class StaleWeights(RuntimeError):
    """The worker holds other weights than the caller expects; load them and call again."""


class RolloutWorker:
    """One engine. After a restart by Ray it holds the weights it was created with, version 0.

    `reward_actors` are the handles, pickled, of the actors that judge for protocols which need the gold answer.
    """

    def __init__(self, config: Config, index: int, reward_actors: bytes, make_engine: MakeEngine):
        self.config, self.index, self.life = config, index, uuid.uuid4().hex
        self.chat = Chat(model_folder(config.model.path), config.prompts)
        judges = make_judges(config, cloudpickle.loads(reward_actors))
        self.make_thread = lambda: LoopThread(
            lambda: TrajectoryLoop(make_engine(config, self.chat), self.chat, limits(config), judges),
            functools.cache(lambda name: build_protocol(name, config, self.chat)),
            config.rollout.hang_s,
        )
        self.starting, self.started = threading.Lock(), None
        if not config.rollout.colocate:
            self.started = self.make_thread()
        start_pulse("rollout", index, self.counts, self.levels)

    def __repr__(self) -> str:
        return f"RolloutWorker({self.index})"

    @property
    def thread(self) -> LoopThread:
        """With `rollout.colocate` the engine starts when the driver first wants something of it: Ray may start this process again
        at any time, and while the learner beside it trains there is no memory for an engine. Raises EngineFailure."""
        with self.starting:
            if self.started is None:
                with engine_call():
                    self.started = self.make_thread()
            return self.started

    def ready(self) -> str:
        """The name of this life of the worker. Answers once the engine is up."""
        return self.life if self.thread else ""

    def add(self, jobs: list[Job], weight_version: int) -> None:
        """Begin these jobs with the weights of exactly that version; `collect` returns them. Raises StaleWeights."""
        self._check_version(weight_version)
        self.thread.add(jobs)

    def collect(self, timeout_s: float) -> tuple[list[Job], dict[str, int]]:
        """Finished jobs, waiting for one at most `timeout_s`, and the loop's counts. Raises EngineHangs, EngineFailure."""
        return self.thread.collect(timeout_s), dict(self.thread.loop.counts)

    def load_weights(self, bundle: Bundle, finish_first: bool) -> tuple[int, dict[str, float]]:
        """Replace the weights; returns their version, and the seconds of `transfer` (fetching) and `load`.

        With `finish_first` the running trajectories end under the old weights; otherwise they go on under the new ones. Waiting
        for them is part of `load`, and so is checking a bucket before it is loaded. Raises ValueError when one arrives changed.
        """
        started = time.monotonic()
        buckets = receive(bundle, self.config.rollout.timeout_s)
        here = time.monotonic()
        self.thread.load_weights(buckets, bundle.version, finish_first)
        return bundle.version, {"transfer": here - started, "load": time.monotonic() - here}

    def begin_weights(self, version: int, finish_first: bool) -> str:
        """Returns when the engine waits for the first part of these weights: the name of this life of the worker."""
        self.feed = Feed(version, self.config.learner.transfer_timeout_s, self.config.rollout.timeout_s)
        thread = ThreadPoolExecutor(1, "load-weights")
        self.loading = thread.submit(self.thread.load_weights, self.feed, version, finish_first)
        thread.shutdown(wait=False)
        while not self.feed.opened.wait(BEGIN_S):
            if self.loading.done():
                self.loading.result()
                raise RuntimeError(f"weights {version}: the engine does not take them part by part")
        return self.life

    def load_part(self, part: dict[str, dict] | Link) -> None:
        """Returns when the engine has loaded this part, or taken part in the link."""
        self.feed.put(part, self.loading)

    def end_weights(self) -> tuple[int, dict[str, float]]:
        """After the last part: the version and what `load_weights` returns with it."""
        self.feed.close()
        return self.feed.version, self.loading.result(self.config.learner.transfer_timeout_s)

    def sleep(self) -> None:
        """Give the GPU's memory back until the next weights come."""
        self.thread.sleep()

    def counts(self) -> dict[str, int]:
        """Tokens since the start: in prompts of all turns, of these found in the prefix cache, and sampled."""
        return dict(self.started.loop.counts) if self.started else {}

    def levels(self) -> dict[str, int]:
        """Trajectories in the engine and in line for it, and the weights it holds."""
        if not self.started:
            return {}
        loop = self.started.loop
        return {"running": len(loop.running), "waiting": len(loop.waiting), "weight_version": loop.engine.version}

    def _check_version(self, weight_version: int) -> None:
        if weight_version != (held := self.thread.loop.engine.version):
            raise StaleWeights(f"{self!r} has weights {held}, asked for {weight_version}")


def configured_engine(config: Config, chat: Chat) -> StepEngine:
    """vLLM, or the trajectories of `rollout.replay`."""
    if config.rollout.replay:
        return RecordedEngine(read_trajectories(Path(config.rollout.replay)))
    return Engine(model_folder(config.model.path), config.model, config.rollout, chat.stop_ids)
