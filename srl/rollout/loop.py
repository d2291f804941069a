"""Trajectories through an engine: a trajectory's next turn enters the running batch the moment it is due."""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol as Interface

from srl.config import Config
from srl.protocols.action import Action, Ask, Generate, Judge, Protocol, Sampled, Say, Stop
from srl.protocols.chat import Chat
from srl.rollout.engine import Completion, Sampling
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind
from srl.weights.bucket import Bucket
from srl.weights.feed import Feed

Arriving = Iterable[Bucket] | Feed  # weights that are here, or that come part by part
JUDGES_S = 0.05  # longest sleep when only judges work


class StepEngine(Interface):
    """What the loop needs of an engine. `version` is that of the weights it holds."""

    version: int

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None: ...
    def step(self) -> list[Completion]: ...
    def abort(self, request_ids: list[str]) -> None: ...
    def load_weights(self, buckets: Arriving, version: int) -> dict[str, float] | None: ...
    def sleep(self) -> None: ...


class EngineFailure(RuntimeError):
    """The engine raised; nothing is known about the work that was in it."""


@contextmanager
def engine_call(*passed: type[Exception]) -> Iterator[None]:
    """What a call to the engine raises becomes EngineFailure, but for `passed`: ValueError, where it is about what was asked."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise EngineFailure(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Limits:
    """Of every trajectory. `max_length` is in tokens and counts the prompt; `max_tokens` counts sampled tokens; 0 is no limit."""

    max_length: int
    max_tokens: int = 0
    max_seconds: float = 0.0
    judge_timeout_s: float = 60.0
    max_active: int = 256
    top_p: float = 1.0


def limits(config: Config) -> Limits:
    return Limits(
        config.model.max_length,
        config.protocol.max_tokens,
        config.protocol.max_seconds,
        config.protocol.judge_timeout_s,
        config.rollout.max_sequences,
        config.rollout.top_p,
    )


@dataclass(slots=True)
class Run:
    """A trajectory on its way. `seen` is what the model has seen of it; `ends_at` is when its time is up."""

    trajectory: Trajectory
    protocol: Protocol
    temperature: float
    ended: Callable[[], None]
    action: Generate | None = None
    seen: list[int] = field(default_factory=list)
    ends_at: float = float("inf")


def turn_seed(trajectory: Trajectory) -> int:
    """Depends on the trajectory and the turn only: results do not depend on workers, batches or order of arrival."""
    name = f"{trajectory.seed}/{trajectory.id}/{len(trajectory.turns)}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


class TrajectoryLoop:
    """Add trajectories at any time; each `step` moves all that run one engine step on. They are changed in place.

    At most `max_active` are in the engine, the others wait here: so a next turn never queues behind first turns.
    With `paused` set, none of the waiting ones is begun.
    """

    def __init__(self, engine: StepEngine, chat: Chat, limits: Limits, judges: Mapping[str, Judge] | None = None):
        self.engine, self.chat, self.limits, self.judges = engine, chat, limits, judges or {}
        self.waiting: deque[Run] = deque()
        self.running: dict[str, Run] = {}  # by request id
        self.judging: dict[Future, tuple[Run, float]] = {}  # with when the wait for the verdict ends
        self.paused = False
        self.counts: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.active)

    @property
    def active(self) -> int:
        """How many are begun and not ended."""
        return len(self.running) + len(self.judging)

    def add(self, trajectory: Trajectory, protocol: Protocol, temperature: float, ended: Callable[[], None]) -> None:
        """`ended` is called in the `step` in which the trajectory stops."""
        self.waiting.append(Run(trajectory, protocol, temperature, ended))

    def step(self) -> None:
        """One engine step, if there is anything to run. Raises EngineFailure."""
        self.begin_waiting()
        if self.judging:
            self._hear()
        if self.running:
            for done in self._engine_step():
                self._receive(self.running.pop(done.request_id), done)
            self._stop_late()

    def begin_waiting(self) -> None:
        """Hand the engine as many of the waiting trajectories as may run."""
        while self.waiting and self.active < self.limits.max_active and not self.paused:
            self._begin(self.waiting.popleft())

    def abort(self) -> None:
        """Leave the engine without requests; everything unfinished is forgotten."""
        if self.running:
            self.engine.abort(list(self.running))
        self.running.clear()
        self.judging.clear()
        self.waiting.clear()

    def _begin(self, run: Run) -> None:
        if self.limits.max_seconds:
            run.ends_at = time.monotonic() + self.limits.max_seconds
        run.seen = run.trajectory.token_ids()
        run.trajectory.stop_reason = None  # what it begins with may have been cut; that was another's doing
        self._follow(run, run.protocol.next_action(run.trajectory))

    def _follow(self, run: Run, action: Action) -> None:
        """Say what there is to say, then submit the next generation, ask a judge or stop."""
        trajectory = run.trajectory
        while isinstance(action, Say):
            trajectory.turns.append(said(self.chat, trajectory, action))
            action = run.protocol.next_action(trajectory)
        if isinstance(action, Stop):
            self._stop(run, action.reason)
        elif isinstance(action, Ask):
            self._ask(run, action)
        else:
            self._submit(run, action)

    def _ask(self, run: Run, action: Ask) -> None:
        if action.judge not in self.judges:
            raise RuntimeError(f"trajectory {run.trajectory.id}: its protocol asks the judge {action.judge!r}, and there is none")
        deadline = min(run.ends_at, time.monotonic() + self.limits.judge_timeout_s)
        self.judging[self.judges[action.judge](run.trajectory)] = run, deadline

    def _hear(self) -> None:
        """Go on with what was judged; sleeps a little when there is nothing else to do."""
        done, _ = wait(self.judging, 0 if self.running else JUDGES_S, FIRST_COMPLETED)
        for future in done:
            run, _ = self.judging.pop(future)
            if (verdict := future.result()) is None:
                self._stop(run, StopReason.UNJUDGED)
            else:
                self._follow(run, run.protocol.judged(run.trajectory, verdict))
        now = time.monotonic()
        for future in [future for future, (_, deadline) in self.judging.items() if deadline <= now]:
            run, _ = self.judging.pop(future)
            self._stop(run, StopReason.TIME if run.ends_at <= now else StopReason.UNJUDGED)

    def _submit(self, run: Run, action: Generate) -> None:
        trajectory = run.trajectory
        token_ids = trajectory.token_ids()
        if token_ids[: len(run.seen)] != run.seen:
            raise RuntimeError(
                f"trajectory {trajectory.id}: turn {len(trajectory.turns)} does not begin with what came before it"
            )
        room = self.limits.max_length - len(token_ids)
        if room < 1:
            return self._stop(run, StopReason.LENGTH if trajectory.turns else StopReason.NO_ROOM)
        left = self.limits.max_tokens - trajectory.sampled_tokens() if self.limits.max_tokens else room
        if left < 1:
            return self._stop(run, StopReason.TOKENS)
        request_id = f"{trajectory.id}#{len(trajectory.turns)}"
        if request_id in self.running:
            raise ValueError(f"two trajectories have the id {trajectory.id}")
        run.action, run.seen = action, token_ids
        self.running[request_id] = run
        sampling = Sampling(min(action.max_tokens, room, left), run.temperature, turn_seed(trajectory), self.limits.top_p)
        with engine_call(ValueError):
            self.engine.submit(request_id, token_ids, sampling)

    def _receive(self, run: Run, done: Completion) -> None:
        if done.ended is not None:
            return self._stop(run, done.ended)
        trajectory, known = run.trajectory, len(run.trajectory.turns)
        self.counts["prompt_tokens"] += len(run.seen)
        self.counts["cached_tokens"] += done.cached_tokens
        self.counts["sampled_tokens"] += len(done.token_ids)
        sampled = Sampled(run.action.kind, done.token_ids, done.logprobs, done.weight_version, done.finished_by_length)
        run.protocol.receive(trajectory, sampled)
        new = [token for turn in trajectory.turns[known:] for token in turn.token_ids]
        # A protocol may drop the end of a generation, but what it keeps is what was sampled.
        if new != done.token_ids[: len(new)]:
            raise RuntimeError(f"trajectory {trajectory.id}: the protocol changed tokens that were sampled")
        run.seen = run.seen + new
        self._follow(run, run.protocol.next_action(trajectory))

    def _engine_step(self) -> list[Completion]:
        with engine_call():
            return self.engine.step()

    def load_weights(self, buckets: Arriving, version: int) -> dict[str, float] | None:
        """Into the engine, between two steps. Raises EngineFailure, but ValueError for weights that are not what was sent and
        TimeoutError for some that do not come."""
        with engine_call(ValueError, TimeoutError):
            return self.engine.load_weights(buckets, version)

    def _stop_late(self) -> None:
        if not self.limits.max_seconds:
            return
        now = time.monotonic()
        late = [request_id for request_id, run in self.running.items() if run.ends_at <= now]
        if late:
            with engine_call():
                self.engine.abort(late)
        for request_id in late:
            self._stop(self.running.pop(request_id), StopReason.TIME)

    def _stop(self, run: Run, reason: StopReason) -> None:
        if reason is StopReason.LENGTH and 0 < self.limits.max_tokens <= run.trajectory.sampled_tokens():
            reason = StopReason.TOKENS
        run.trajectory.stop_reason = reason
        run.ended()


def said(chat: Chat, trajectory: Trajectory, action: Say) -> Turn:
    """The turn in which that is said after what the trajectory holds."""
    text = "\n".join(part for part in (action.within, action.text) if part)
    return Turn(TurnKind.INSTRUCTION, chat.said(action, trajectory.token_ids()), text, verdict=action.verdict)


def run_trajectories(
    engine: StepEngine,
    protocol: Protocol,
    chat: Chat,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    limits: Limits,
    timeout_s: float,
    judges: Mapping[str, Judge] | None = None,
) -> list[Trajectory]:
    """Run every trajectory until its protocol stops it; returns them in the order given, changed in place.

    Raises TimeoutError after `timeout_s` with the number of unfinished trajectories, ValueError for an id that occurs twice.
    Whatever is raised, the engine is left without requests.
    """
    if twice := [name for name, count in Counter(trajectory.id for trajectory in trajectories).items() if count > 1]:
        raise ValueError(f"two trajectories have the id {twice[0]}")
    loop = TrajectoryLoop(engine, chat, limits, judges)
    ended: list[None] = []
    for trajectory in trajectories:
        loop.add(trajectory, protocol, temperature, lambda: ended.append(None))
    deadline = time.monotonic() + timeout_s
    try:
        while loop.busy:
            loop.step()
            if loop.busy and time.monotonic() > deadline:
                left = len(trajectories) - len(ended)
                raise TimeoutError(f"waited {timeout_s:g} s: {left} of {len(trajectories)} trajectories unfinished")
    finally:
        loop.abort()
    return list(trajectories)
