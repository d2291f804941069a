"""Samples and models from elsewhere that a run cannot use: refused with one line before anything starts, also by --dry-run."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srl.config import ConfigError
from srl.learner.model import VALUE_HEAD, check_start_model
from srl.pipelines.samples import SCHEMA, check_samples, write_block
from srl.protocols.chat import Chat, model_folder
from tests.demonstration_rows import path
from tests.test_bad_input import broken_model, refused

BLOCK = "block-00000.parquet"


def samples_of(problem: str, chat: Chat) -> list[dict]:
    own = {"logprobs": [], "seed": 0, "temperature": 1.0, "weights": "w", "prompt_id": problem}
    named = [{name: row[name] and problem + row[name][1:] for name in ("id", "parent")} for row in path("D1", chat)]
    return [row | own | names for row, names in zip(path("D1", chat), named, strict=True)]


def samples(folder: Path, chat: Chat) -> Path:
    """A folder of two files as stage 1 writes them."""
    folder.mkdir(exist_ok=True)
    for number in range(2):
        write_block(samples_of(f"p{number}", chat), {}, folder / f"block-{number:05d}.parquet")
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


def test_samples_of_two_runs_in_one_folder_are_refused(tmp_path: Path, chat: Chat):
    folder = samples(tmp_path, chat)
    write_block(samples_of("p1", chat), {}, folder / "block-00002.parquet")
    with pytest.raises(ConfigError, match=r"block-00002\.parquet: samples of problem p1 stand in block-00001\.parquet too"):
        check_samples(folder, ["id", "prompt_id"])
    write_block([*samples_of("p2", chat), *samples_of("p3", chat), *samples_of("p2", chat)], {}, folder / "block-00002.parquet")
    with pytest.raises(ConfigError, match="samples of problem p2 stand in two places"):
        check_samples(folder, ["id", "prompt_id"])


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


BASE = model_folder("embedded")


def configured(**settings) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def other_words(folder: Path) -> None:
    """Four and seven change places."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = {entry["content"]: entry for entry in tokenizer["added_tokens"]}
    words["4"]["content"], words["7"]["content"] = "7", "4"
    file.write_text(json.dumps(tokenizer))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()


SHAPE = f"not a model of the shape of model.path={BASE}: "
OTHER = [
    (
        configured(hidden_size=64, num_hidden_layers=2, layer_types=["full_attention"] * 2),
        SHAPE + "hidden_size 64, there 128; num_hidden_layers 2, there 4",
    ),
    (configured(vocab_size=400), SHAPE + "vocab_size 400, there 384"),
    (configured(tie_word_embeddings=False), SHAPE + "tie_word_embeddings False, there True"),
    (configured(model_type="llama"), SHAPE + "model_type llama, there qwen2"),
    (configured(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}), SHAPE + "rope_parameters {'rope_theta': 500000.0"),
    (configured(num_hidden_layers=3), "config.json: `num_hidden_layers` (3) must be equal to"),
    (other_words, f"its tokenizer is not that of model.path={BASE}: '4' is token "),
    (adapter, "a LoRA adapter, not a whole model: merge it into the model it is for"),
    (adapter_alone, "a LoRA adapter, not a whole model: merge it into the model it is for"),
]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["start", "dry-run"])
@pytest.mark.parametrize(("change", "message"), OTHER)
def test_a_start_that_is_not_of_the_shape_or_tokens_of_the_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], object], message: str, more: list[str]
):
    folder = broken_model(tmp_path, change)
    assert refused(tmp_path, capfd, "rl", *more, f"rl.start={folder}").startswith(f"srl: rl.start={folder}: {message}")


def test_a_start_may_differ_in_what_does_not_change_its_weights_or_their_use(tmp_path: Path):
    folder = broken_model(tmp_path, configured(dtype="float32", use_cache=False, initializer_range=0.1))
    check_start_model(str(folder), BASE, "rl.start")


def test_an_adapter_is_no_model_anywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = broken_model(tmp_path, adapter)
    for setting in ("model.path", "stage1.teacher"):
        assert f"{setting}={folder}: a LoRA adapter" in refused(tmp_path, capfd, f"{setting}={folder}")


def test_a_reward_model_of_other_tokens_is_no_judge(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = broken_model(tmp_path, other_words)
    (folder / VALUE_HEAD).touch()
    message = refused(tmp_path, capfd, "--dry-run", "protocol.name=judged", f"protocol.judge={folder}")
    assert f"protocol.judge={folder}: its tokenizer is not that of model.path={BASE}: '4' is token" in message
