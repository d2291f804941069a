"""Demonstrations as conversations that other programs train on, and conversations from elsewhere as demonstrations.

A record is one line of JSON, or one row of a `datasets` folder:

    id, prompt_id, class
    messages    [{"role": system | user | assistant, "content": text, "train": whether any of it is trained,
                  "train_detail": [{"begin_offset", "end_offset" (inclusive), "train"}, ...]}]

`train` and `train_detail` are what axolotl's `chat_template` data sets have. Where they are missing every assistant message is
trained; system and user messages never are.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from srl.config import Config, ConfigError
from srl.pipelines.assemble import split_of, write_demonstrations
from srl.pipelines.card import data_card, write_card
from srl.pipelines.classes import Row
from srl.pipelines.samples import ROWS_PER_GROUP
from srl.protocols.chat import Chat, model_folder
from srl.tasks.problems import json_rows

SPLITS = ("train", "validation")


def record(row: Row) -> dict[str, Any]:
    """A demonstration as a record."""
    return {**{name: row[name] for name in ("id", "prompt_id", "class")}, "messages": [message(m) for m in row["messages"]]}


def message(stored: Mapping[str, Any]) -> dict[str, Any]:
    pieces = stored["pieces"]
    detail, begin = [], 0
    for piece in pieces:
        if piece["text"]:
            end = begin + len(piece["text"])
            detail.append({"begin_offset": begin, "end_offset": end - 1, "train": piece["weight"] > 0})
            begin = end
    trained = any(part["train"] for part in detail)
    return {
        "role": stored["role"],
        "content": "".join(piece["text"] for piece in pieces),
        "train": trained,
        # Said once where the whole message is alike.
        "train_detail": detail if len({part["train"] for part in detail}) > 1 else [],
    }


def pieces(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a record's message with their weights. Raises ValueError for offsets that do not cover the content."""
    content, role = found["content"], found["role"]
    train = role == "assistant" and found.get("train", True) is not False
    detail = (found.get("train_detail") or []) if train else []
    if not detail:
        return [{"kind": "", "text": content, "weight": float(train)}]
    parts, begin = [], 0
    for part in detail:
        if part["begin_offset"] != begin or part["end_offset"] < begin:
            raise ValueError(f"train_detail jumps from {begin} to {part['begin_offset']}")
        end = part["end_offset"] + 1
        parts.append({"kind": "", "text": content[begin:end], "weight": float(bool(part["train"]))})
        begin = end
    if begin != len(content):
        raise ValueError(f"train_detail ends at {begin} of {len(content)} characters")
    return parts


def demonstration(found: Mapping[str, Any], chat: Chat) -> Row:
    """A record as a row of demonstrations, tokenised with the model's own template.

    Answers end with the tokenizer's end token, as in stage 1; it has the weight of their last piece. Raises ValueError for a
    record that is not a conversation.
    """
    messages = found.get("messages")
    if not isinstance(messages, Sequence) or not messages or not all(map(is_message, messages)):
        raise ValueError("no list `messages` of objects with `role` and `content`")
    if unknown := {m["role"] for m in messages} - {"system", "user", "assistant"}:
        raise ValueError(f"role {sorted(unknown)[0]!r} is none of system, user, assistant")
    parts = [pieces(m) for m in messages]
    answers = [part for m, part in zip(messages, parts, strict=True) if m["role"] == "assistant"]
    around = chat.around_answers([{"role": m["role"], "content": m["content"]} for m in messages])
    ids, weights = list(around[0]), [0.0] * len(around[0])
    for answer, after in zip(answers, around[1:], strict=True):
        for piece in answer:
            tokens = chat.encode(piece["text"])
            ids += tokens
            weights += [piece["weight"]] * len(tokens)
        # What follows the end token, which the template may have another of, as in `Chat.instruction`.
        rest = [] if answer is answers[-1] else after[1:] if after[:1] == [chat.end_id] else after
        ids += [chat.end_id, *rest]
        weights += [answer[-1]["weight"]] + [0.0] * len(rest)
    question = next((m["content"] for m in messages if m["role"] == "user"), "")
    content = json.dumps([(m["role"], m["content"]) for m in messages])
    return {
        "id": str(found.get("id") or hashlib.blake2b(content.encode(), digest_size=8).hexdigest()),
        "prompt_id": str(found.get("prompt_id") or hashlib.blake2b(question.encode(), digest_size=8).hexdigest()),
        "class": str(found.get("class") or "imported"),
        "text": chat.decode(ids),
        "token_ids": ids,
        "weights": weights,
        "messages": [{"role": m["role"], "pieces": part} for m, part in zip(messages, parts, strict=True)],
    }


def is_message(found: Any) -> bool:
    return isinstance(found, Mapping) and "role" in found and isinstance(found.get("content"), str)


# --- files


def export(demonstrations: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl, validation.jsonl and a `datasets` folder; returns how many records each split has."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter = Counter()
    files = {split: (folder / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
    try:
        for batch in pq.ParquetFile(demonstrations).iter_batches(ROWS_PER_GROUP):
            for row in batch.to_pylist():
                files[row["split"]].write(json.dumps(record(row), ensure_ascii=False) + "\n")
                counts[row["split"]] += 1
    finally:
        for file in files.values():
            file.close()
    written = {split: [row for _, row in json_rows(folder / f"{split}.jsonl")] for split in SPLITS if counts[split]}
    datasets.disable_progress_bars()
    sets = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in written.items()})
    sets.save_to_disk(str(folder / "datasets"))
    return dict(counts)


def read_records(source: str) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """(where it stands, its split or None, record) of a .jsonl file, a folder of them, a `datasets` folder or a hub name."""
    path = Path(source)
    if path.is_file():
        for number, row in json_rows(path):
            yield f"{path}, row {number}", None, row
    elif path.is_dir() and (files := [path / f"{split}.jsonl" for split in SPLITS if (path / f"{split}.jsonl").exists()]):
        for file in files:
            for number, row in json_rows(file):
                yield f"{file}, row {number}", file.stem, row
    else:
        for split, rows in used_splits(source, load_sets(source)).items():
            for number, row in enumerate(rows, 1):
                yield f"{source}, {split} row {number}", split if split in SPLITS else None, row


def used_splits(source: str, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """`train` and `validation`, of which the first must be there, or the only split: nobody trains on a `test` by accident."""
    if len(found) > 1 and "train" not in found:
        raise ConfigError(f"{source}: none of its splits {', '.join(found)} is called train; save that as a file or folder")
    return {split: rows for split, rows in found.items() if split in SPLITS or len(found) == 1}


def load_sets(source: str) -> Mapping[str, Any]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_from_disk(source) if Path(source).is_dir() else datasets.load_dataset(source)
    except (DatasetsError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source}: no .jsonl file, `datasets` folder or hub data set that can be read: {reason}") from None
    return found if isinstance(found, dict) else {"train": found}


def import_records(config: Config, source: str, target: Path) -> dict[str, Any]:
    """Write a foreign set as this run's demonstrations; returns its data card. Raises ConfigError naming the row.

    Without a validation split, problems are held out as `stage1.validation_share` says.
    """
    chat = Chat(model_folder(config.model.path), config.prompts)
    rows, splits, dropped = [], {}, Counter()
    for place, split, found in read_records(source):
        try:
            row = demonstration(found, chat)
        except KeyError as error:
            raise ConfigError(f"{place}: train_detail without {error}") from None
        except (ValueError, TypeError, ConfigError) as error:
            raise ConfigError(f"{place}: {error}") from None
        if not any(row["weights"]):
            dropped["nothing in it is trained"] += 1
        elif len(row["token_ids"]) > config.model.max_length:
            dropped["longer than model.max_length"] += 1
        else:
            rows.append(row)
            splits[row["prompt_id"]] = split
    if not rows:
        raise ConfigError(f"{source}: no conversation to train on; left out: {dict(dropped)}")
    if "validation" not in splits.values():
        splits = split_of(set(splits), config)
    shown, examples = write_demonstrations(rows, {name: split or "train" for name, split in splits.items()}, target)
    card = data_card(config, {}, dropped, shown, examples)
    write_card(card, target.parent)
    return card
