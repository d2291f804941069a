"""From a generation to turns."""

from dataclasses import replace

from srl.protocols.action import Action, Sampled, Stop
from srl.protocols.chat import Chat
from srl.protocols.grammar import awaits_word, cut_chain, first_verdict, only_verdict
from srl.reward.answer import last_boxed
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind, Verdict


def chain_end(trajectory: Trajectory) -> Stop:
    """Why a long chain is over, from its last turn. One that was cut is: nobody else speaks in it."""
    if trajectory.stop_reason is StopReason.LENGTH:
        return Stop(StopReason.LENGTH)
    last = [turn for turn in trajectory.turns if turn.kind is not TurnKind.INSTRUCTION][-1]
    if last.kind is TurnKind.ATTEMPT:
        return Stop(StopReason.NO_VERDICT)
    if last.kind is TurnKind.REVISION:
        return Stop(StopReason.ROUNDS)
    return Stop(StopReason.VERIFIED if last.verdict is Verdict.CORRECT else StopReason.NO_REVISION)


def cut_or(action: Action, trajectory: Trajectory) -> Action:
    """Where a protocol comes to its end with a turn behind it that was cut, the reason is LENGTH.

    A conversation goes on after such a turn: the user answers what he was shown, as with a model that just stopped there. A
    judge's last word and a trajectory's time keep their own reasons: they end it whether it was cut or not.
    """
    return Stop(StopReason.LENGTH) if isinstance(action, Stop) and trajectory.stop_reason is StopReason.LENGTH else action


def append_turn(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """One generation is one turn. The trajectory's stop reason remembers that it was cut by its token limit."""
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
    if sampled.finished_by_length:
        trajectory.stop_reason = StopReason.LENGTH


def append_chain(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """One generation is cut into turns at the token offsets of its markers; every token lands in exactly one turn.

    After an instruction the first answer of the generation is a revision. A generation that goes on after a given attempt is
    cut together with it. When that has an answer, what is added before the first marker is of the check; what is added without
    any marker is an attempt again, so the trajectory has no verdict.
    """
    said = any(turn.kind is TurnKind.INSTRUCTION for turn in trajectory.turns)
    given = [] if said else [token for turn in trajectory.turns for token in turn.token_ids]
    answered = bool(given) and trajectory.turns[-1].answer is not None
    ids, begin = given + sampled.token_ids, len(given)
    text = chat.decode(ids)
    segments = cut_chain(text, grammar)
    start = len(chat.decode(given))
    reached = begin, start
    for index, segment in enumerate(segments):
        is_last = index == len(segments) - 1
        reached = (len(ids), len(text)) if is_last else chat.reach(ids, segment.end, reached)
        end = reached[0]
        if (given and end == begin) or (answered and segment.kind is TurnKind.ATTEMPT and not is_last):
            continue
        own = text[start : segment.end]
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
        begin, start = end, segment.end
    if sampled.finished_by_length:
        trajectory.stop_reason = StopReason.LENGTH


def append_answer(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """Only the answer that a generation begins with: a verdict of the model's own, and what follows it, is dropped."""
    keep_answer(trajectory, sampled, chat, grammar, len(sampled.token_ids))


def append_open_answer(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """As `append_answer`, also without the token that ends the message."""
    ended = bool(sampled.token_ids) and sampled.token_ids[-1] in chat.stop_ids
    keep_answer(trajectory, sampled, chat, grammar, len(sampled.token_ids) - ended)


def keep_answer(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str, most: int) -> None:
    """Append the answer, of at most so many tokens; the turn remembers what is dropped."""
    segments = cut_chain(chat.decode(sampled.token_ids), grammar)
    count = most if len(segments) == 1 else chat.tokens_before(sampled.token_ids, segments[0].end)
    append_turn(trajectory, first_tokens(sampled, count), chat, grammar)
    trajectory.turns[-1].dropped = sampled.token_ids[count:]


def append_check(trajectory: Trajectory, sampled: Sampled, chat: Chat, grammar: str) -> None:
    """What a generation says between its first answer and the word of its verdict on it, if there is one, as an instruction.

    The judge's word will follow in place of the model's. Like it this counts as said: it is neither trained nor rewarded.
    """
    text, ids = chat.decode(sampled.token_ids), sampled.token_ids
    if (places := first_verdict(text, grammar)) is None:
        return
    answered = chat.tokens_before(ids, cut_chain(text, grammar)[0].end)
    marker, word = (ids[answered : tokens_within(ids, place, chat)] for place in places)
    # Where a token holds the word and of the marker its end, or all of it, the judge says the marker, too.
    said = word if awaits_word(chat.decode(word), grammar) else marker
    if said:
        trajectory.turns.append(Turn(TurnKind.INSTRUCTION, said, chat.decode(said)))


def tokens_within(ids: list[int], characters: int, chat: Chat) -> int:
    """The most first tokens whose text has at most that many characters."""
    count, reached = chat.reach(ids, characters)
    return count - (reached > characters)


def first_tokens(sampled: Sampled, count: int) -> Sampled:
    """What is dropped takes its end with it: only a generation that is kept whole was cut by its limit."""
    cut = sampled.finished_by_length and count == len(sampled.token_ids)
    return replace(sampled, token_ids=sampled.token_ids[:count], logprobs=sampled.logprobs[:count], finished_by_length=cut)
