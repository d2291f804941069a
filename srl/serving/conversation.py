"""One problem through a protocol, told as it happens: text by kind of turn, then the finished trajectory. Knows no server."""

import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from srl.protocols.action import Ask, Protocol, Sampled, Say, Stop
from srl.protocols.chat import Chat
from srl.protocols.grammar import GRAMMARS, MARKERS, end_of_answer, verdict_of
from srl.rollout.loop import Limits, said
from srl.serving.backend import Sample
from srl.trajectory import StopReason, Trajectory, TurnKind, Verdict

Generate = Callable[[list[int], int], AsyncIterator[Sample]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text, and what it looks to be part of; the cut into turns is final only when the generation is."""

    kind: TurnKind
    text: str


async def converse(
    trajectory: Trajectory, protocol: Protocol, chat: Chat, generate: Generate, *, grammar: str, limits: Limits
) -> AsyncIterator[Piece]:
    """Run the trajectory to its end, changed in place, and yield its text while it comes.

    `generate(token_ids, max_tokens)` yields the tokens of one generation. It ends for the reasons for which it would end in the
    rollout loop, under the same limits.
    """
    ends_at = time.monotonic() + limits.max_seconds if limits.max_seconds else math.inf
    while True:
        action = protocol.next_action(trajectory)
        if isinstance(action, Stop):
            trajectory.stop_reason = action.reason
            if action.reason is StopReason.LENGTH and 0 < limits.max_tokens <= trajectory.sampled_tokens():
                trajectory.stop_reason = StopReason.TOKENS
            return
        if isinstance(action, Say):
            trajectory.turns.append(said(chat, trajectory, action))
            yield Piece(TurnKind.INSTRUCTION, trajectory.turns[-1].text)
            continue
        if isinstance(action, Ask):
            raise RuntimeError(f"the protocol asks the judge {action.judge!r}, and a conversation has none")
        context = trajectory.token_ids()
        room = limits.max_length - len(context)
        left = limits.max_tokens - trajectory.sampled_tokens() if limits.max_tokens else room
        if min(room, left) < 1:
            trajectory.stop_reason = StopReason.LENGTH if room < 1 else StopReason.TOKENS
            return
        writing, samples = Writing(chat), list[Sample]()
        async with aclosing(generate(context, min(action.max_tokens, room, left))) as coming:
            async for sample in coming:
                if time.monotonic() > ends_at:
                    trajectory.stop_reason = StopReason.TIME
                    return
                samples.append(sample)
                if text := writing.add(sample.token_id):
                    yield Piece(kind_at_end(writing.text, grammar, action.kind) if action.chain else action.kind, text)
        by_length = bool(samples) and samples[-1].last_by_length
        protocol.receive(trajectory, Sampled(action.kind, writing.ids, [each.logprob for each in samples], 0, by_length))


@dataclass(slots=True)
class Writing:
    """A generation while it comes. Every token is decoded a few times, however many there are."""

    chat: Chat
    ids: list[int] = field(default_factory=list)
    text: str = ""
    known: int = 0  # tokens whose text is told
    before: int = 0  # those whose text was told the time before

    def add(self, token_id: int) -> str:
        """The text that can be told after this token: an unfinished character waits for the rest of it."""
        self.ids.append(token_id)
        # Decoded with tokens before it: some tokenizers leave out a space at the beginning.
        told = self.chat.decode(self.ids[self.before : self.known])
        text = self.chat.decode(self.ids[self.before :])
        if len(text) <= len(told) or text.endswith("\ufffd"):
            return ""
        self.before, self.known = self.known, len(self.ids)
        self.text += text[len(told) :]
        return text[len(told) :]


def kind_at_end(text: str, grammar: str, first: TurnKind) -> TurnKind:
    """What the end of a growing chain is part of that begins with `first`: an answer until the line of its box ends, then the
    check of it."""
    verdict = last_verdict(text, grammar)
    start = verdict.end() if verdict else 0
    if verdict and (verdict_of(verdict) is Verdict.CORRECT or not text[start:].strip()):
        return TurnKind.VERDICT
    end = end_of_answer(text, start, len(text))
    answered = end is not None and end < len(text)
    return TurnKind.VERDICT if answered else TurnKind.REVISION if verdict else first


def last_verdict(text: str, grammar: str) -> re.Match[str] | None:
    """From its marker on: looking for the whole of it everywhere takes a hundred times as long."""
    found = (GRAMMARS[grammar].match(text, marker.start()) for marker in reversed([*MARKERS[grammar].finditer(text)]))
    return next((match for match in found if match), None)


def turns_of(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Plain turns for people: kind, text, and the answer or verdict in it."""
    found = []
    for turn in trajectory.turns:
        extra = {"answer": turn.answer} if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION) else {}
        extra |= {"verdict": turn.verdict} if turn.kind is TurnKind.VERDICT else {}
        found.append({"kind": turn.kind.value, "text": turn.text.strip(), **extra})
    return found
