"""Samples and models from elsewhere that a run cannot use: refused with one line before anything starts, also by --dry-run."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srl.pipelines.samples import SCHEMA, check_samples, write_block
from srl.protocols.chat import Chat
from tests.demonstration_rows import path
from tests.test_bad_input import refused

BLOCK = "block-00000.parquet"


def samples(folder: Path, chat: Chat) -> Path:
    """A folder of two files as stage 1 writes them."""
    folder.mkdir(exist_ok=True)
    for number in range(2):
        rows = [{**row, "logprobs": [], "seed": 0, "temperature": 1.0, "weights": "w"} for row in path("D1", chat)]
        write_block(rows, {}, folder / f"block-{number:05d}.parquet")
    return folder


def changed(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda file: pq.write_table(change(pq.read_table(file)), file)


def cast(name: str, kind: pa.DataType) -> Callable[[Path], object]:
    return changed(lambda table: table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind)))


def say(name: str, word: str) -> Callable[[Path], object]:
    return changed(lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array([word] * len(table))))


SPOILT = [
    (lambda file: file.write_text('{"question": "1 + 1"}'), "not a Parquet file: "),
    (lambda file: file.write_bytes(b""), "not a Parquet file: "),
    (lambda file: file.write_bytes(file.read_bytes()[:500]), "not a Parquet file: "),
    (lambda file: (file.unlink(), file.mkdir()), "not a Parquet file: "),
    (changed(lambda table: table.slice(0, 0)), "no rows in it"),
    (changed(lambda table: table.drop_columns(["parent", "gold"])), "not samples of stage 1: it has no column gold, parent"),
    (
        changed(lambda table: pa.table({"text": ["x"]})),
        "accepted, answer, gold, id, kind, outcome, parent, prompt_id, question, ",
    ),
    (cast("accepted", pa.int8()), "not samples of stage 1: its column accepted holds integers, not bool"),
    (say("token_ids", "1 2"), "not samples of stage 1: its column token_ids holds text, not lists of integers"),
    (say("kind", "answer"), "its column kind holds 'answer', not one of "),
    (say("outcome", "right"), "its column outcome holds 'right', not one of correct, incorrect, no_answer, unparsable, timeout"),
]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["start", "dry-run"])
@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_samples_that_stage_1_did_not_write(
    tmp_path: Path, chat: Chat, capfd: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str, more: list[str]
):
    folder = samples(tmp_path / "samples", chat)
    spoil(folder / BLOCK)
    said = refused(tmp_path, capfd, *more, f"stage1.samples={folder}")
    assert said.startswith(f"srl: stage1.samples={folder}: {folder / BLOCK}: ") and message in said


def test_samples_of_another_writer_may_be_wider_and_have_more_columns(tmp_path: Path, chat: Chat):
    folder = samples(tmp_path, chat)
    for change in (
        cast("text", pa.large_string()),
        cast("token_ids", pa.large_list(pa.int64())),
        cast("kind", pa.dictionary(pa.int32(), pa.string())),
        changed(lambda table: table.append_column("mine", pa.nulls(len(table)))),
        changed(lambda table: table.set_column(table.schema.get_field_index("answer"), "answer", pa.nulls(len(table)))),
    ):
        change(folder / BLOCK)
    assert len(check_samples(folder, SCHEMA.names)) == 2
