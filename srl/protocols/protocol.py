"""Who speaks next and when it stops. A protocol looks at a trajectory and says: generate, say this, or stop.

long_chain   one assistant message, cut into attempt, verdict, revision afterwards (paper, section 4)
two_turn     attempt with its verdict; told so by the user, a revision (section 5)
prompted     attempt; asked for a verdict; when that is "wrong", asked for a revision. What a base model can do
intrinsic    attempt; asked again without any verdict
attempt, verdict, revision   one step of sequential sampling, on top of what the trajectory already holds (section 3.1)
"""

from collections.abc import Callable
from dataclasses import dataclass

from srl.config import Config
from srl.protocols.chat import Chat
from srl.protocols.grammar import cut_chain, only_verdict
from srl.reward.answer import last_boxed
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind, Verdict


@dataclass(frozen=True, slots=True)
class Generate:
    kind: TurnKind
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Say:
    text: str


@dataclass(frozen=True, slots=True)
class Stop:
    reason: StopReason


Action = Generate | Say | Stop


@dataclass(frozen=True, slots=True)
class Sampled:
    """One generation as it came from the engine."""

    kind: TurnKind
    token_ids: list[int]
    logprobs: list[float]
    weight_version: int
    finished_by_length: bool


@dataclass(frozen=True)
class Protocol:
    """`next_action` reads a trajectory; `receive` appends a generation to it as one or more turns."""

    next_action: Callable[[Trajectory], Action]
    receive: Callable[[Trajectory, Sampled], None]


def build_protocol(name: str, config: Config, chat: Chat) -> Protocol:
    """Raises KeyError for a name that is not one of this module's."""
    lengths, prompts, grammar = config.rollout, config.prompts, config.protocol.grammar
    generate = {
        TurnKind.ATTEMPT: Generate(TurnKind.ATTEMPT, lengths.max_attempt_tokens),
        TurnKind.VERDICT: Generate(TurnKind.VERDICT, lengths.max_verdict_tokens),
        TurnKind.REVISION: Generate(TurnKind.REVISION, lengths.max_attempt_tokens),
    }
    chain = Generate(TurnKind.ATTEMPT, lengths.max_response_tokens)

    def one_turn(trajectory: Trajectory, sampled: Sampled) -> None:
        append_turn(trajectory, sampled, chat, grammar)

    def whole_chain(trajectory: Trajectory, sampled: Sampled) -> None:
        append_chain(trajectory, sampled, chat, grammar)

    def long_chain(trajectory: Trajectory) -> Action:
        return chain_end(trajectory) if any(turn.sampled for turn in trajectory.turns) else chain

    def two_turn(trajectory: Trajectory) -> Action:
        if not any(turn.sampled for turn in trajectory.turns):
            return chain
        end = chain_end(trajectory)
        if end.reason is not StopReason.NO_REVISION:
            return end
        if trajectory.turns[-1].kind is TurnKind.INSTRUCTION:
            return chain
        revisions = len(trajectory.answers()) - 1
        return Say(prompts.revise) if revisions < config.protocol.max_rounds else Stop(StopReason.ROUNDS)

    def prompted(trajectory: Trajectory) -> Action:
        if not trajectory.turns:
            return generate[TurnKind.ATTEMPT]
        last = trajectory.turns[-1]
        if last.kind is TurnKind.ATTEMPT:
            return Say(prompts.verify)
        if last.kind is TurnKind.INSTRUCTION:
            return generate[TurnKind.REVISION if trajectory.verdicts() else TurnKind.VERDICT]
        if last.kind is TurnKind.REVISION:
            return Stop(StopReason.ROUNDS)
        if last.verdict is None:
            return Stop(StopReason.NO_VERDICT)
        return Stop(StopReason.VERIFIED) if last.verdict is Verdict.CORRECT else Say(prompts.revise)

    def intrinsic(trajectory: Trajectory) -> Action:
        if not trajectory.turns:
            return generate[TurnKind.ATTEMPT]
        if trajectory.turns[-1].kind is TurnKind.INSTRUCTION:
            return generate[TurnKind.REVISION]
        return Say(prompts.reask) if len(trajectory.answers()) == 1 else Stop(StopReason.ANSWERED)

    def step(kind: TurnKind, instruction: str | None) -> Callable[[Trajectory], Action]:
        def next_action(trajectory: Trajectory) -> Action:
            last = trajectory.turns[-1].kind if trajectory.turns else None
            if last is kind:
                return Stop(StopReason.ANSWERED)
            return Say(instruction) if instruction is not None and last is not TurnKind.INSTRUCTION else generate[kind]

        return next_action

    return {
        "long_chain": Protocol(long_chain, whole_chain),
        "two_turn": Protocol(two_turn, whole_chain),
        "prompted": Protocol(prompted, one_turn),
        "intrinsic": Protocol(intrinsic, one_turn),
        "attempt": Protocol(step(TurnKind.ATTEMPT, None), one_turn),
        "verdict": Protocol(step(TurnKind.VERDICT, prompts.verify), one_turn),
        "revision": Protocol(step(TurnKind.REVISION, prompts.revise), one_turn),
    }[name]


def chain_end(trajectory: Trajectory) -> Stop:
    """Why a long chain is over, from its last turn."""
    if trajectory.stop_reason is StopReason.LENGTH:
        return Stop(StopReason.LENGTH)
    last = [turn for turn in trajectory.turns if turn.kind is not TurnKind.INSTRUCTION][-1]
    if last.kind is TurnKind.ATTEMPT:
        return Stop(StopReason.NO_VERDICT)
    if last.kind is TurnKind.REVISION:
        return Stop(StopReason.ROUNDS)
    return Stop(StopReason.VERIFIED if last.verdict is Verdict.CORRECT else StopReason.NO_REVISION)


def append_turn(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """One generation is one turn."""
    text = chat.decode(sampled.token_ids)
    is_verdict = sampled.kind is TurnKind.VERDICT
    trajectory.turns.append(
        Turn(
            sampled.kind,
            sampled.token_ids,
            text,
            sampled.logprobs,
            sampled.weight_version,
            answer=None if is_verdict else last_boxed(text),
            verdict=only_verdict(text, grammar) if is_verdict else None,
        )
    )


def append_chain(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """One generation is cut into turns at the token offsets of its markers; every token lands in exactly one turn.

    After an instruction the first answer of the generation is a revision. A generation that goes on after a given attempt is
    cut together with it; what it adds without any marker is an attempt again, so the trajectory has no verdict.
    """
    said = any(turn.kind is TurnKind.INSTRUCTION for turn in trajectory.turns)
    given = [] if said else [token for turn in trajectory.turns for token in turn.token_ids]
    ids, begin = given + sampled.token_ids, len(given)
    text = chat.decode(ids)
    segments = cut_chain(text, grammar)
    start = len(chat.decode(given))
    for index, segment in enumerate(segments):
        end = len(ids) if index == len(segments) - 1 else max(begin, chat.tokens_before(ids, segment.end))
        if end == begin and given:
            continue
        own = text[max(start, segment.start) : segment.end]
        trajectory.turns.append(
            Turn(
                TurnKind.REVISION if segment.kind is TurnKind.ATTEMPT and said else segment.kind,
                ids[begin:end],
                own,
                sampled.logprobs[begin - len(given) : end - len(given)],
                sampled.weight_version,
                answer=last_boxed(own) if segment.answer is not None else None,
                verdict=segment.verdict,
            )
        )
        begin = end
    if sampled.finished_by_length:
        trajectory.stop_reason = StopReason.LENGTH
