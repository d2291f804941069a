"""What a protocol can ask for next, and what it is told."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from srl.trajectory import StopReason, Trajectory, TurnKind, Verdict


@dataclass(frozen=True, slots=True)
class Generate:
    """A turn of that kind; a `chain` begins with one and is cut into turns when it has ended."""

    kind: TurnKind
    max_tokens: int
    chain: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """`within` is put into the model's own, unfinished message; `text` is said by the user after it. Either may be empty.

    `verdict` is what is said about the answer, true or not; it is recorded with the turn.
    """

    text: str
    within: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Hear what a judge outside the model says about the last answer: `gold`, or `judge` for the one in protocol.judge."""

    judge: str


@dataclass(frozen=True, slots=True)
class Stop:
    reason: StopReason


Action = Generate | Say | Ask | Stop


@dataclass(frozen=True, slots=True)
class Sampled:
    """One generation as it came from the engine."""

    kind: TurnKind
    token_ids: list[int]
    logprobs: list[float]
    weight_version: int
    finished_by_length: bool


def no_judge(trajectory: Trajectory, verdict: Verdict) -> Action:
    raise RuntimeError("this protocol asks no judge")


@dataclass(frozen=True)
class Protocol:
    """`next_action` reads a trajectory; `receive` appends a generation to it as one or more turns, or the beginning of it.

    After `Ask`, `judged` says what the verdict leads to.
    """

    next_action: Callable[[Trajectory], Action]
    receive: Callable[[Trajectory, Sampled], None]
    judged: Callable[[Trajectory, Verdict], Action] = no_judge


# Judges the last answer of a trajectory without keeping the engine waiting; None is no verdict.
Judge = Callable[[Trajectory], Future[Verdict | None]]
