"""Demonstrations out and conversations in."""

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from srl.config import ConfigError, load_config
from srl.learner.batch import weighted_example
from srl.pipelines.assemble import load_demonstrations, write_demonstrations
from srl.pipelines.conversation import demonstration, export, import_records, record
from srl.pipelines.render import messages, render
from srl.protocols.chat import Chat
from srl.tasks.chains import question
from tests.demonstration_rows import CHAIN, RIGHT, SAYS_WRONG, SLIP, config, path

TOLD = "The solution is wrong. Correct it."


def row(name: str, chat: Chat, protocol: str, n: int = 0) -> dict:
    trajectory = render(name, path(name, chat), config(protocol), chat)
    example = weighted_example(trajectory)
    return {
        "id": f"p{n}/{name}", "prompt_id": f"p{n}", "class": name, "text": chat.decode(example.token_ids),
        "token_ids": example.token_ids, "weights": example.weights, "messages": messages(trajectory, chat),
    }  # fmt: skip


def test_a_record_says_which_characters_are_trained(chat):
    said = record(row("D1", chat, "two_turn"))["messages"]
    assert [(m["role"], m["train"]) for m in said] == [("user", False), ("assistant", True), ("user", False), ("assistant", True)]
    assert [m["content"] for m in said] == [question(CHAIN), f"{SLIP}\n{SAYS_WRONG}", TOLD, RIGHT]
    assert said[1]["train_detail"] == [
        {"begin_offset": 0, "end_offset": len(SLIP) - 1, "train": False},
        {"begin_offset": len(SLIP), "end_offset": len(said[1]["content"]) - 1, "train": True},
    ]
    assert [m["train_detail"] for m in (said[0], said[2], said[3])] == [[], [], []]


@pytest.mark.parametrize("protocol", ["long_chain", "two_turn"])
@pytest.mark.parametrize("name", ["D1", "D2", "D3"])
def test_what_is_exported_and_imported_again_trains_the_same_tokens(chat, protocol, name):
    ours = row(name, chat, protocol)
    again = demonstration(json.loads(json.dumps(record(ours))), chat)
    assert (again["token_ids"], again["weights"]) == (ours["token_ids"], ours["weights"])
    assert {key: again[key] for key in ("id", "prompt_id", "class")} == {key: ours[key] for key in ("id", "prompt_id", "class")}


@pytest.mark.parametrize("protocol", ["long_chain", "two_turn"])
@pytest.mark.parametrize("name", ["D1", "D3"])
def test_also_where_the_template_has_an_end_token_of_its_own(two_ends, protocol, name):
    assert len(two_ends.stop_ids) == 2
    ours = row(name, two_ends, protocol)
    again = demonstration(record(ours), two_ends)
    assert (again["token_ids"], again["weights"]) == (ours["token_ids"], ours["weights"])


def test_a_plain_conversation_trains_answers_and_their_end_tokens_and_nothing_else(chat):
    foreign = {"messages": [{"role": "user", "content": "Check"}, {"role": "assistant", "content": "10"}]}
    found = demonstration(foreign, chat)
    assert chat.tokenizer.decode(found["token_ids"]) == "<|user|>Check<|end|><|assistant|>10<|end|>"
    assert found["weights"] == [0, 0, 0, 0, 1, 1] and found["class"] == "imported"
    twice = demonstration({"messages": foreign["messages"] * 2}, chat)
    assert twice["weights"] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert (
        demonstration({"messages": [foreign["messages"][0], {**foreign["messages"][1], "train": False}]}, chat)["weights"]
        == [0] * 6
    )


def partly(begin: int, end: int) -> dict:
    detail = [{"begin_offset": begin, "end_offset": end, "train": True}]
    return {"messages": [{"role": "assistant", "content": "10", "train_detail": detail}]}


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({}, "no list `messages`"),
        ({"messages": [{"role": "user"}]}, "no list `messages`"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "role 'tool' is none of system, user, assistant"),
        (partly(1, 1), "train_detail jumps from 0 to 1"),
        (partly(0, 0), "train_detail ends at 1 of 2"),
        ({"messages": ["Check"]}, "no list `messages`"),
        ({"messages": [{"role": "user", "content": None}]}, "no list `messages`"),
    ],
)
def test_what_is_no_conversation_is_named(chat, bad, named):
    with pytest.raises(ValueError, match=named):
        demonstration(bad, chat)


@pytest.fixture
def exported(chat, tmp_path: Path) -> Path:
    rows = [row(name, chat, "long_chain", n) for n in range(4) for name in ("D1", "D3")]
    splits = {"p0": "validation", **{f"p{n}": "train" for n in range(1, 4)}}
    write_demonstrations(rows, splits, tmp_path / "demonstrations.parquet")
    assert export(tmp_path / "demonstrations.parquet", tmp_path / "set") == {"train": 6, "validation": 2}
    return tmp_path


@pytest.mark.parametrize("source", ["set", "set/datasets"])
def test_exported_folders_come_back_with_their_splits(exported: Path, tokenizer_folder, source):
    target = exported / "again" / "demonstrations.parquet"
    target.parent.mkdir()
    card = import_records(load_config(None, [f"model.path={tokenizer_folder}"]), str(exported / source), target)
    assert card["classes"] == {"D1": 4, "D3": 4}
    for split in ("train", "validation"):
        ours, theirs = (load_demonstrations(file, split) for file in (exported / "demonstrations.parquet", target))
        assert [(e.id, e.token_ids, e.weights) for e in ours] == [(e.id, e.token_ids, e.weights) for e in theirs]
    assert {file.name for file in target.parent.iterdir()} == {"demonstrations.parquet", "card.json", "card.md", "card"}


def test_others_can_read_the_datasets_folder(exported: Path):
    loaded = datasets.load_from_disk(str(exported / "set" / "datasets"))
    assert loaded["train"].num_rows == 6 and loaded["validation"][0]["messages"][0]["role"] == "user"


def conversations(*answers: str) -> datasets.Dataset:
    """Each asks for its answer."""
    said = [[{"role": role, "content": answer} for role in ("user", "assistant")] for answer in answers]
    return datasets.Dataset.from_list([{"messages": messages} for messages in said])


def test_of_a_foreign_set_only_train_and_validation_are_taken(tmp_path: Path, tokenizer_folder):
    settings = load_config(None, [f"model.path={tokenizer_folder}"])

    def imported(**splits: datasets.Dataset) -> set[str]:
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
        import_records(settings, str(tmp_path / "set"), tmp_path / "d.parquet")
        found = pq.read_table(tmp_path / "d.parquet", columns=["text", "split"]).to_pylist()
        return {(row["text"].rpartition("<|assistant|>")[2].strip(), row["split"]) for row in found}

    held_out, tests = conversations("20"), conversations("30")
    assert imported(train=conversations("10"), validation=held_out, test=tests) == {("10", "train"), ("20", "validation")}
    assert len(imported(all=conversations("10", "40"))) == 2
    with pytest.raises(ConfigError, match="none of its splits train_sft, test_sft is called train"):
        imported(train_sft=held_out, test_sft=tests)


def test_a_foreign_file_is_split_by_problem_and_what_cannot_be_trained_is_counted(tmp_path: Path, tokenizer_folder):
    answer = {"role": "assistant", "content": "10"}
    lines = [
        {"messages": [{"role": "user", "content": "Check"}, answer]},
        {"messages": [{"role": "user", "content": "10"}, answer]},
    ]
    lines.append({"messages": [{"role": "user", "content": "Check"}]})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = load_config(None, [f"model.path={tokenizer_folder}"])
    card = import_records(settings, str(tmp_path / "own.jsonl"), tmp_path / "d.parquet")
    assert card["classes"] == {"imported": 2} and card["dropped"] == {"nothing in it is trained": 1}
    assert [len(load_demonstrations(tmp_path / "d.parquet", split)) for split in ("train", "validation")] == [1, 1]


@pytest.mark.parametrize("detail", [[{"train": True}], [{"begin_offset": "a"}], ["all"], True])
def test_details_without_offsets_are_named_by_file_and_line(tmp_path: Path, tokenizer_folder, detail):
    message = {"role": "assistant", "content": "10", "train_detail": detail}
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": [message]}))
    with pytest.raises(ConfigError, match=r"own\.jsonl, row 1: "):
        import_records(load_config(None, [f"model.path={tokenizer_folder}"]), str(tmp_path / "own.jsonl"), tmp_path / "d.parquet")


def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, tokenizer_folder):
    (tmp_path / "own.jsonl").write_text('{"messages": [{"role": "user", "content": "Check"}]}\n{"text": "10"}\n')
    with pytest.raises(ConfigError, match=r"own\.jsonl, row 2: no list `messages`"):
        import_records(load_config(None, [f"model.path={tokenizer_folder}"]), str(tmp_path / "own.jsonl"), tmp_path / "d.parquet")
