"""Graded attempts among the samples of stage 1, as examples for an outcome reward model."""

from pathlib import Path

from srl.config import Config
from srl.learner.batch import Example
from srl.learner.reward_model import outcome_example
from srl.pipelines.assemble import check_tokenizer, split_of
from srl.pipelines.classes import Row
from srl.pipelines.samples import problems_in, sample_files
from srl.protocols.chat import Chat
from srl.trajectory import Outcome, TurnKind

COLUMNS = ["id", "prompt_id", "question", "kind", "token_ids", "truncated", "outcome"]


def load_attempts(config: Config, folder: Path, chat: Chat) -> tuple[list[Example], list[Example]]:
    """Train and validation: every attempt that ended by itself and was graded, whatever became of it in stage 1.

    Problems are held out as a whole, `stage1.validation_share` of them. Samples are those of `stage1.samples`, else of `folder`.
    Raises ConfigError when there are none, or of another tokenizer.
    """
    files = sample_files(Path(config.stage1.samples or folder))
    check_tokenizer(files[0], chat)
    found = {
        rows[0]["prompt_id"]: attempts(rows, chat, config.model.max_length)
        for file in files
        for rows in problems_in(file, COLUMNS)
    }
    splits = split_of(set(found), config)
    train = [example for prompt, own in found.items() if splits[prompt] == "train" for example in own]
    validation = [example for prompt, own in found.items() if splits[prompt] == "validation" for example in own]
    return train, validation


def attempts(rows: list[Row], chat: Chat, max_length: int) -> list[Example]:
    """Of one problem's samples."""
    opening = chat.opening(rows[0]["question"])
    found = [
        outcome_example(row["id"], opening, row["token_ids"], chat, row["outcome"] == Outcome.CORRECT)
        for row in rows
        if row["kind"] == TurnKind.ATTEMPT and not row["truncated"] and row["outcome"] != Outcome.TIMEOUT
    ]
    return [example for example in found if len(example.token_ids) <= max_length]
