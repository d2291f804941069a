"""One problem through a protocol, told as it happens: text by kind of turn, then the finished trajectory. Knows no server."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from srl.protocols.action import Ask, Protocol, Sampled, Say, Stop
from srl.protocols.chat import Chat
from srl.protocols.grammar import GRAMMARS, end_of_answer, verdict_of
from srl.rollout.loop import said
from srl.serving.backend import Sample
from srl.trajectory import StopReason, Trajectory, TurnKind, Verdict

Generate = Callable[[list[int], int], AsyncIterator[Sample]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text, and what it looks to be part of; the cut into turns is final only when the generation is."""

    kind: TurnKind
    text: str


async def converse(
    trajectory: Trajectory, protocol: Protocol, chat: Chat, generate: Generate, *, grammar: str, max_length: int
) -> AsyncIterator[Piece]:
    """Run the trajectory to its end, changed in place, and yield its text while it comes.

    `generate(token_ids, max_tokens)` yields the tokens of one generation. Like the rollout loop: a turn gets what is left of
    `max_length` tokens, and with nothing left the trajectory stops with LENGTH.
    """
    while True:
        action = protocol.next_action(trajectory)
        if isinstance(action, Stop):
            trajectory.stop_reason = action.reason
            return
        if isinstance(action, Say):
            trajectory.turns.append(said(chat, trajectory, action))
            yield Piece(TurnKind.INSTRUCTION, trajectory.turns[-1].text)
            continue
        if isinstance(action, Ask):
            raise RuntimeError(f"the protocol asks the judge {action.judge!r}, and a conversation has none")
        context = trajectory.token_ids()
        budget = min(action.max_tokens, max_length - len(context))
        if budget < 1:
            trajectory.stop_reason = StopReason.LENGTH
            return
        samples: list[Sample] = []
        shown = ""
        async for sample in generate(context, budget):
            samples.append(sample)
            text = chat.decode([sample.token_id for sample in samples])
            # An unfinished character decodes to a replacement sign: wait for the rest of it.
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield Piece(kind_at_end(text, grammar, action.kind), text[len(shown) :])
                shown = text
        by_length = bool(samples) and samples[-1].last_by_length
        ids, logprobs = [sample.token_id for sample in samples], [sample.logprob for sample in samples]
        protocol.receive(trajectory, Sampled(action.kind, ids, logprobs, 0, by_length))


def kind_at_end(text: str, grammar: str, first: TurnKind) -> TurnKind:
    """What the end of a growing generation is part of that begins with `first`: an answer until the line of its box ends, then
    the check of it."""
    if first is TurnKind.VERDICT:
        return first
    matches = list(GRAMMARS[grammar].finditer(text))
    start = matches[-1].end() if matches else 0
    if matches and (verdict_of(matches[-1]) is Verdict.CORRECT or not text[start:].strip()):
        return TurnKind.VERDICT
    end = end_of_answer(text, start, len(text))
    if end is not None and end < len(text):
        return TurnKind.VERDICT
    return TurnKind.REVISION if matches else first


def turns_of(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Plain turns for people: kind, text, and the answer or verdict in it."""
    found = []
    for turn in trajectory.turns:
        extra = {"answer": turn.answer} if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION) else {}
        extra |= {"verdict": turn.verdict} if turn.kind is TurnKind.VERDICT else {}
        found.append({"kind": turn.kind.value, "text": turn.text.strip(), **extra})
    return found
