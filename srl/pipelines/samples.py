"""The files of samples: schema, rows, one file for each block of problems.

One row per sample; `parent` names the sample it continues, so the rows of a problem form a tree:

    id            <prompt_id>/a3, <prompt_id>/a3/v1, <prompt_id>/a3/v1/r0
    prompt_id, question, gold
    kind          attempt | verdict | revision
    parent        id of the sample before, "" for attempts
    text, token_ids, logprobs     as sampled, the end token included; one log-probability (natural) per token
    truncated     cut by the token budget (then also empty, when there was no room at all)
    answer        of attempts and revisions, null without a box
    outcome       the grader's, for attempts and revisions
    verdict       of verdicts: correct | wrong, null when the format is broken
    accepted      attempts: always; verdicts: agrees with the attempt's grade, if it got one; revisions: the answer is right
    seed          what the engine's random generator was seeded with for this sample; a function of run.seed and id
    temperature   it was sampled at
    weights       fingerprint of the model that sampled it

Every sample is written, rejected or not, so that one sampling run feeds any way of assembling.

A file is named by the block's place in the list of problems and appears only when it is whole. So a block that is sampled
again, after whichever process died, replaces its file by the same rows, and nothing can be there twice.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from srl.config import ConfigError, OtherRunError
from srl.protocols.chat import first_line
from srl.tasks.problems import Problem
from srl.trajectory import Outcome, StopReason, Trajectory, TurnKind, Verdict

Row = dict[str, Any]

ROWS_PER_GROUP = 1024  # a reader holds one row group at a time: some megabytes
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("kind", pa.string()),
        ("parent", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("truncated", pa.bool_()),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("verdict", pa.string()),
        ("accepted", pa.bool_()),
        ("seed", pa.int64()),
        ("temperature", pa.float32()),
        ("weights", pa.string()),
    ]
)

NULLABLE = ("answer", "outcome", "verdict")
WORDS = {"kind": TurnKind, "outcome": Outcome, "verdict": Verdict}


def sample_row(trajectory: Trajectory, seed: int, temperature: float, weights: str) -> Row:
    """The last turn of a trajectory as a row of the table above."""
    turn = trajectory.turns[-1]
    return {
        "id": trajectory.id,
        "prompt_id": trajectory.prompt_id,
        "question": trajectory.question,
        "gold": trajectory.gold,
        "kind": turn.kind.value,
        "parent": "" if turn.kind is TurnKind.ATTEMPT else trajectory.id.rpartition("/")[0],
        "text": turn.text,
        "token_ids": turn.token_ids,
        "logprobs": turn.logprobs,
        "truncated": trajectory.stop_reason is StopReason.LENGTH,
        "answer": turn.answer,
        "outcome": turn.outcome and turn.outcome.value,
        "verdict": turn.verdict and turn.verdict.value,
        "accepted": is_accepted(trajectory),
        "seed": seed,
        "temperature": temperature,
        "weights": weights,
    }


def is_accepted(trajectory: Trajectory) -> bool:
    turn = trajectory.turns[-1]
    if turn.kind is TurnKind.ATTEMPT:
        return True
    if turn.kind is TurnKind.REVISION:
        return turn.outcome is Outcome.CORRECT
    attempt = trajectory.turns[0].outcome
    if attempt is Outcome.TIMEOUT:
        return False
    return turn.verdict is (Verdict.CORRECT if attempt is Outcome.CORRECT else Verdict.WRONG)


# --- blocks


def blocks_of(problems: Sequence[Problem], size: int) -> dict[str, Sequence[Problem]]:
    """File name -> problems. The same for the same list, whatever is already done."""
    return {f"block-{start // size:05d}.parquet": problems[start : start + size] for start in range(0, len(problems), size)}


def block_label(problems: Sequence[Problem], weights: Sequence[str]) -> dict[bytes, bytes]:
    """What a file of samples says of itself: which problems with which golds, in which order, and which models."""
    said = json.dumps([(problem.prompt_id, problem.gold) for problem in problems])
    names = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
    return {b"srl.problems": names.encode(), b"srl.weights": " ".join(sorted(weights)).encode()}


def missing_blocks(folder: Path, blocks: dict[str, Sequence[Problem]], weights: Sequence[str]) -> dict[str, Sequence[Problem]]:
    """Blocks without a file. Raises OtherRunError for a file that holds other problems or comes from another model, and
    ConfigError for one that is not Parquet."""
    missing = {}
    for name, problems in blocks.items():
        if not (folder / name).exists():
            missing[name] = problems
            continue
        try:
            found = pq.read_metadata(folder / name).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"{folder / name}: not a Parquet file: {first_line(error)}; delete it and it is made again"
            ) from None
        expected = block_label(problems, weights)
        if different := [key.decode() for key in expected if found.get(key) != expected[key]]:
            raise OtherRunError(f"{folder / name} has other {' and '.join(different)} than this run: choose another run.name")
    return missing


def write_block(rows: Sequence[Row], label: dict[bytes, bytes], file: Path) -> None:
    """The file appears only when it is whole; one that is there is replaced."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
    try:
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA).replace_schema_metadata(label)
        pq.write_table(table, partial, row_group_size=ROWS_PER_GROUP)
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove what killed processes left."""
    for left in (*folder.glob(".*.partial"), *folder.glob(".*.try")):
        left.unlink(missing_ok=True)


def sample_files(folder: Path) -> list[Path]:
    """In the order of the problems. Raises ConfigError when there is none."""
    if not (files := sorted(folder.glob("*.parquet"))):
        raise ConfigError(f"{folder}: no samples; run stage1 first")
    return files


def check_samples(folder: Path, columns: Sequence[str]) -> list[Path]:
    """As `sample_files`. Raises ConfigError naming the first file that is not Parquet or lacks rows or one of these columns, or
    that has a problem again."""
    files, places = sample_files(folder), {}
    for file in files:
        try:
            with pq.ParquetFile(file) as found:
                schema, rows = found.schema_arrow, found.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{file}: not a Parquet file: {first_line(error)}") from None
        if missing := [name for name in columns if name not in schema.names]:
            raise ConfigError(f"{file}: not samples of stage 1: it has no column {', '.join(missing)}")
        for name in columns:
            there, wanted = content(schema.field(name).type), content(SCHEMA.field(name).type)
            if there != wanted and not (there == "null" and name in NULLABLE):
                raise ConfigError(f"{file}: not samples of stage 1: its column {name} holds {there}, not {wanted}")
        if not rows:
            raise ConfigError(f"{file}: no rows in it")
        check_words(file, [name for name in WORDS if name in columns])
        check_once(file, places)
    return files


def check_once(file: Path, places: dict[str, Path]) -> None:
    """Raises ConfigError for a problem that was met before, and notes where these are: ids and caps are those of one run."""
    prompts = pq.read_table(file, columns=["prompt_id"])["prompt_id"].cast(pa.string()).combine_chunks()
    for prompt in pyarrow.compute.run_end_encode(prompts).values.to_pylist():
        if prompt in places:
            where = "in two places" if places[prompt] == file else f"in {places[prompt].name} too"
            raise ConfigError(f"{file}: samples of problem {prompt} stand {where}; a folder holds those of one run")
        places[prompt] = file


def content(kind: pa.DataType) -> str:
    """What is read from such a column, in whichever width or encoding it was written."""
    if pa.types.is_dictionary(kind):
        return content(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"lists of {content(kind.value_type)}"
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return "text" if text else "integers" if pa.types.is_integer(kind) else str(kind)


def check_words(file: Path, columns: Sequence[str]) -> None:
    for name, column in zip(columns, pq.read_table(file, columns=list(columns)).columns, strict=True):
        known = [*WORDS[name], *([None] if name in NULLABLE else [])]
        if unknown := [word for word in pyarrow.compute.unique(column).to_pylist() if word not in known]:
            raise ConfigError(
                f"{file}: not samples of stage 1: its column {name} holds {unknown[0]!r}, not one of {', '.join(WORDS[name])}"
            )


def problems_in(file: Path, columns: Sequence[str], kind: TurnKind | None = None) -> Iterator[list[Row]]:
    """The rows of one problem after another, or those of a kind. Rows of a problem stand together in a file."""
    rows: list[Row] = []
    for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP, columns=list(columns)):
        if kind is not None:
            batch = batch.filter(pyarrow.compute.equal(batch["kind"], kind.value))
        for row in batch.to_pylist():
            if rows and rows[0]["prompt_id"] != row["prompt_id"]:
                yield rows
                rows = []
            rows.append(row)
    if rows:
        yield rows


def fingerprint(path: str) -> str:
    """Short hash of a model folder's weights; the path itself for a hub name."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        return path
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as handle:
            while chunk := handle.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()
