"""A path of samples as the one text that the trained model is to write. Pure functions."""

from collections.abc import Sequence
from typing import Any

from srl.config import Config
from srl.pipelines.classes import Row
from srl.protocols.chat import Chat
from srl.protocols.grammar import cut_chain, only_match
from srl.reward.answer import last_boxed
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind, Verdict


def render(name: str, path: Sequence[Row], config: Config, chat: Chat) -> Trajectory:
    """The sampled pieces joined token by token as the trained model is to write them.

    `long_chain`: one message, pieces separated by `prompts.joiner`. `two_turn`: attempt and verdict in one message, then the
    user's instruction, then the revision. `raft`, `raft_plus`: attempt, the instruction to try again, revision. The token that
    the model must write to go on belongs to the piece it leads to. Raises ValueError if anything but a verdict or a right
    answer would be trained.
    """
    without_verdict = config.stage1.recipe != "ift"
    weights = {"D1": (0.0, 1.0, 1.0), "D2": (0.0, 0.0, 1.0), "D3": (float(config.stage1.train_correct_attempts), 1.0)}[name]
    trajectory = Trajectory(f"{path[-1]['id']}/{name}", path[0]["prompt_id"], path[0]["question"], path[0]["gold"], [])
    trajectory.prompt_token_ids = chat.opening(trajectory.question)
    two_turn = without_verdict or config.protocol.form == "_two_turn"
    said = config.prompts.reask if without_verdict else config.prompts.revise
    steps = [(row, weight) for row, weight in zip(path, weights, strict=True) if is_shown(row, config.stage1.recipe)]
    for index, (row, weight) in enumerate(steps):
        is_revision, is_last = row["kind"] == TurnKind.REVISION, index == len(steps) - 1
        ids, text = sampled_piece(row, chat, config.protocol.grammar)
        if two_turn and is_revision:
            trajectory.turns.append(Turn(TurnKind.INSTRUCTION, chat.instruction(said, chat.end_id), said))
        elif index > 0:
            ids = chat.joiner() + ids
        if is_last or (two_turn and steps[index + 1][0]["kind"] == TurnKind.REVISION):
            ids = [*ids, chat.end_id]
        verdict = row["verdict"] and Verdict(row["verdict"])
        outcome = row["outcome"] and Outcome(row["outcome"])
        turn = Turn(TurnKind(row["kind"]), ids, text, answer=row["answer"], verdict=verdict, loss_weight=weight)
        turn.outcome = outcome
        trajectory.turns.append(turn)
    check_weights(trajectory)
    return trajectory


def is_shown(row: Row, recipe: str) -> bool:
    """The baselines are made without verdicts."""
    return recipe == "ift" or row["kind"] != TurnKind.VERDICT


def words(path: Sequence[Row], recipe: str, grammar: str) -> tuple[str, ...]:
    """What a demonstration of these samples says, piece by piece: those of one problem that say the same are copies."""
    return tuple(sampled_text(row, grammar) for row in path if is_shown(row, recipe))


def sampled_text(row: Row, grammar: str) -> str:
    """Of a verdict up to its marker: what follows is cut (section 3.1)."""
    match = only_match(row["text"], grammar) if row["kind"] == TurnKind.VERDICT else None
    return row["text"][: match.end()] if match else row["text"]


def sampled_piece(row: Row, chat: Chat, grammar: str) -> tuple[list[int], str]:
    """Token ids without those that end a message, and text, both cut as `sampled_text`."""
    ids, text = chat.without_end(row["token_ids"]), sampled_text(row, grammar)
    return (ids if text == row["text"] else ids[: chat.tokens_before(ids, len(text))]), text


def reads_as_made(trajectory: Trajectory, chat: Chat, grammar: str) -> bool:
    """Whether the trained model's own text, cut as it will be cut, gives the turns and answers that were sampled and graded."""
    messages: list[list[Turn]] = [[]]
    for turn in trajectory.turns:
        if turn.kind is TurnKind.INSTRUCTION:
            messages.append([])
        else:
            messages[-1].append(turn)
    for place, turns in enumerate(messages):
        text = chat.decode([token for turn in turns for token in turn.token_ids])
        segments = cut_chain(text, grammar)
        kinds = [TurnKind.REVISION if place and s.kind is TurnKind.ATTEMPT else s.kind for s in segments]
        said = [s.verdict if s.kind is TurnKind.VERDICT else s.answer for s in segments]
        made = [turn.verdict if turn.kind is TurnKind.VERDICT else last_boxed(turn.text) for turn in turns]
        if (kinds, said) != ([turn.kind for turn in turns], made):
            return False
    return True


def check_weights(trajectory: Trajectory) -> None:
    """Raise ValueError for a trained turn that nobody should learn: an instruction, a wrong answer, a verdict that is wrong."""
    right: bool | None = None
    for turn in trajectory.turns:
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            right = turn.outcome is Outcome.CORRECT
        agrees = turn.kind is TurnKind.VERDICT and turn.verdict is (Verdict.CORRECT if right else Verdict.WRONG)
        learnable = agrees if turn.kind is TurnKind.VERDICT else turn.kind is not TurnKind.INSTRUCTION and right
        if turn.loss_weight > 0 and not learnable:
            raise ValueError(f"demonstration {trajectory.id}: its {turn.kind} must not be trained, has weight {turn.loss_weight}")


def messages(trajectory: Trajectory, chat: Chat) -> list[dict[str, Any]]:
    """The conversation as text: what the system and the user said, and the answers in weighted pieces, the end token left out."""
    said = [("system", chat.prompts.system)] if chat.prompts.system else []
    said.append(("user", chat.prompts.question.replace("{question}", trajectory.question)))
    conversation = [{"role": role, "pieces": [{"kind": "", "text": text, "weight": 0.0}]} for role, text in said]
    for turn in trajectory.turns:
        if turn.kind is TurnKind.INSTRUCTION:
            conversation.append({"role": "user", "pieces": [{"kind": turn.kind.value, "text": turn.text, "weight": 0.0}]})
            continue
        if conversation[-1]["role"] == "user":
            conversation.append({"role": "assistant", "pieces": []})
        piece = {"kind": turn.kind.value, "text": chat.decode(turn.token_ids), "weight": turn.loss_weight}
        conversation[-1]["pieces"].append(piece)
    return conversation
