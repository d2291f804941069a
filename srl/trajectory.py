"""Typed turns: the one data structure that every part of the system reads and writes.

A trajectory is a prompt (its token ids, as the model saw them) followed by turns. Text is only for people; training reads
`token_ids` and `logprobs`, exactly as they were sampled.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class TurnKind(StrEnum):
    INSTRUCTION = "instruction"
    ATTEMPT = "attempt"
    VERDICT = "verdict"
    REVISION = "revision"


class Verdict(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"


class Outcome(StrEnum):
    """What the grader found. Only `CORRECT` is right; the others are kept apart because they have different causes."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"


class StopReason(StrEnum):
    VERIFIED = "verified"  # the last verdict was "correct"
    ROUNDS = "rounds"  # a revision was made and the protocol allows no further round
    ANSWERED = "answered"  # a protocol without verdicts said all it wanted to
    NO_VERDICT = "no_verdict"  # the model broke the format: it ended without a verdict on its attempt
    NO_REVISION = "no_revision"  # the last verdict was "wrong" and nothing came after it
    LENGTH = "length"  # a turn reached its token limit, whatever followed, or the next one would not fit in the model's length
    TOKENS = "tokens"  # the trajectory sampled as many tokens as protocol.max_tokens allows
    TIME = "time"  # the trajectory ran longer than protocol.max_seconds; the turn that was running is left out
    ACCEPTED = "accepted"  # the judge outside the model, gold answer or scorer, found the answer right
    REJECTED = "rejected"  # the judge found the answer wrong, and the protocol goes on only from right ones
    UNJUDGED = "unjudged"  # the judge gave no verdict, or none within protocol.judge_timeout_s
    NO_ROOM = "no_room"  # the prompt leaves no room for an answer in the model's length
    FAILED = "failed"  # workers died or hung with it more often than rollout.retries


@dataclass(slots=True)
class Turn:
    """One contribution to a trajectory.

    `logprobs` has one entry per token for sampled turns (natural log, temperature 1, the full distribution of the policy
    `weight_version`) and is empty for turns that were said rather than sampled. `loss_weight` is in 0..1 and is what
    fine-tuning multiplies every token of the turn with. `dropped` was sampled after the turn and is not part of it: what a
    protocol with a judge outside the model left out.
    """

    kind: TurnKind
    token_ids: list[int]
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    weight_version: int = -1
    answer: str | None = None
    verdict: Verdict | None = None
    outcome: Outcome | None = None
    loss_weight: float = 0.0
    dropped: list[int] = field(default_factory=list)

    @property
    def sampled(self) -> bool:
        return bool(self.logprobs)


@dataclass(slots=True)
class Trajectory:
    """A prompt and the turns so far. `id` is unique in a run; trajectories of one `prompt_id` form a group."""

    id: str
    prompt_id: str
    question: str
    gold: str
    prompt_token_ids: list[int]
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    reward: float | None = None
    seed: int = 0

    def token_ids(self) -> list[int]:
        """Everything the model has seen: the next turn is sampled after exactly these ids."""
        ids = list(self.prompt_token_ids)
        for turn in self.turns:
            ids.extend(turn.token_ids)
        return ids

    def answers(self) -> list[Turn]:
        """The attempt and the revisions, in order."""
        return [turn for turn in self.turns if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION)]

    def verdicts(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.kind is TurnKind.VERDICT]

    def final(self) -> Turn | None:
        """The turn whose answer counts: the last attempt or revision that has one, else the last one at all."""
        answers = self.answers()
        with_answer = [turn for turn in answers if turn.answer is not None]
        return (with_answer or answers or [None])[-1]

    @property
    def truncated(self) -> bool:
        """Whether it ran out of tokens: of a turn, of the model's length, or of those a trajectory may have."""
        return self.stop_reason in (StopReason.LENGTH, StopReason.TOKENS)

    def sampled_tokens(self) -> int:
        return sum(len(turn.token_ids) for turn in self.turns if turn.sampled)


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """Plain dictionary for JSON and Arrow; enums become their strings."""
    return asdict(trajectory)


def from_record(record: dict[str, Any]) -> Trajectory:
    """Inverse of `to_record`, also after a round trip through JSON or Arrow."""
    turns = [
        Turn(
            **{
                **turn,
                "kind": TurnKind(turn["kind"]),
                "verdict": turn["verdict"] and Verdict(turn["verdict"]),
                "outcome": turn["outcome"] and Outcome(turn["outcome"]),
                "token_ids": list(turn["token_ids"]),
                "logprobs": list(turn["logprobs"]),
                "dropped": list(turn.get("dropped", ())),
            }
        )
        for turn in record["turns"]
    ]
    return Trajectory(
        **{
            **record,
            "turns": turns,
            "prompt_token_ids": list(record["prompt_token_ids"]),
            "stop_reason": record["stop_reason"] and StopReason(record["stop_reason"]),
        }
    )
