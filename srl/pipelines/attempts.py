"""Graded attempts among the samples of stage 1, as examples for an outcome reward model."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from srl.config import Config
from srl.learner.batch import Example
from srl.learner.reward_model import outcome_ids, with_outcome
from srl.observe.progress import bar
from srl.pipelines.assemble import check_tokenizer, split_of
from srl.pipelines.classes import Row
from srl.pipelines.examples import Examples
from srl.pipelines.samples import ROWS_PER_GROUP, problems_in, sample_files
from srl.protocols.chat import Chat
from srl.trajectory import Outcome, TurnKind

COLUMNS = ["id", "prompt_id", "question", "kind", "token_ids", "truncated", "outcome"]
SCHEMA = pa.schema([("id", pa.string()), ("prompt_id", pa.string()), ("token_ids", pa.list_(pa.int32())), ("right", pa.bool_())])


def load_attempts(config: Config, folder: Path, chat: Chat, store: Path) -> tuple[Examples, Examples]:
    """Train and validation: every attempt that ended by itself and was graded, whatever became of it in stage 1.

    Problems are held out as a whole, `stage1.validation_share` of them. Samples are those of `stage1.samples`, else of `folder`.
    The examples lie in the file `store`, 4 bytes a token, from where they are read as they are trained on. Raises ConfigError
    when there are none, or of another tokenizer.
    """
    files = sample_files(Path(config.stage1.samples or folder))
    check_tokenizer(files[0], chat)
    prompts = write_attempts(files, chat, config.model.max_length, store)
    splits, table = split_of(prompts, config), pa.ipc.open_file(pa.memory_map(str(store))).read_all()
    held_out = [splits[prompt] == "validation" for prompt in table["prompt_id"].to_pylist()]
    places = np.flatnonzero(np.logical_not(held_out)), np.flatnonzero(held_out)
    return tuple(Examples(table.select(["id", "token_ids", "right"]), example_of, some) for some in places)


def write_attempts(files: list[Path], chat: Chat, max_length: int, store: Path) -> set[str]:
    """Returns the ids of all problems, also of those without an attempt that can be used."""
    prompts, rows = set(), []
    with (
        pa.OSFile(str(store), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        bar(len(files), "files of samples") as update,
    ):
        update(0)
        for file in files:
            for problem in problems_in(file, COLUMNS, TurnKind.ATTEMPT):
                prompts.add(problem[0]["prompt_id"])
                rows += attempts(problem, chat, max_length)
                if len(rows) >= ROWS_PER_GROUP:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                    rows = []
            update(1)
        writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
    return prompts


def example_of(row: Row) -> Example:
    return with_outcome(row["id"], row["token_ids"], row["right"])


def attempts(rows: list[Row], chat: Chat, max_length: int) -> list[Row]:
    """Of one problem's attempts those that are used, as rows of `SCHEMA`."""
    opening = chat.opening(rows[0]["question"])
    used = [row for row in rows if not row["truncated"] and row["outcome"] != Outcome.TIMEOUT]
    found = [
        {
            "id": row["id"],
            "prompt_id": row["prompt_id"],
            "token_ids": outcome_ids(opening, row["token_ids"], chat),
            "right": row["outcome"] == Outcome.CORRECT,
        }
        for row in used
    ]
    return [row for row in found if len(row["token_ids"]) <= max_length]


def share_right(examples: Examples) -> float:
    """Per cent of the attempts."""
    return 100 * float(np.mean(examples.table["right"].to_numpy()[examples.places]))
