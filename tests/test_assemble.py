"""From hand-made samples to demonstrations, as text, tokens, weights and files."""

import json

import pyarrow.parquet as pq
import pytest

from srl.config import ConfigError, load_config
from srl.learner.batch import weighted_example
from srl.pipelines.assemble import (
    Assembler,
    check_tokenizer,
    load_demonstrations,
    split_of,
    write_demonstrations,
)
from srl.pipelines.render import check_weights, messages, reads_as_made, render
from srl.pipelines.samples import write_block
from srl.protocols.action import Sampled
from srl.protocols.chat import Chat
from srl.protocols.receive import append_chain
from srl.tasks.chains import question
from srl.trajectory import Outcome, Trajectory, TurnKind, Verdict
from tests.demonstration_rows import CHAIN, RIGHT, SAYS_CORRECT, SAYS_WRONG, SLIP, A, I, R, V, config, ids_of, path, row

# --- render


def pieces(trajectory: Trajectory, chat: Chat) -> list[tuple[TurnKind, str, float]]:
    """(kind, its tokens as text with the end token, loss weight)."""
    return [(turn.kind, chat.tokenizer.decode(turn.token_ids), turn.loss_weight) for turn in trajectory.turns]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("D1", [(A, SLIP, 0.0), (V, f"\n{SAYS_WRONG}", 1.0), (R, f"\n{RIGHT}<|end|>", 1.0)]),
        ("D2", [(A, RIGHT, 0.0), (V, f"\n{SAYS_WRONG}", 0.0), (R, f"\n{RIGHT}<|end|>", 1.0)]),
        ("D3", [(A, RIGHT, 1.0), (V, f"\n{SAYS_CORRECT}<|end|>", 1.0)]),
    ],
)
def test_long_chains_have_the_weights_of_equation_1_and_one_end_token(chat, name, expected):
    trajectory = render(name, path(name, chat), config(), chat)
    assert pieces(trajectory, chat) == expected
    assert trajectory.prompt_token_ids == chat.opening(question(CHAIN))


TOLD = "<|user|>The solution is wrong. Correct it.<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("D1", [(A, SLIP, 0.0), (V, f"\n{SAYS_WRONG}<|end|>", 1.0), (I, TOLD, 0.0), (R, f"{RIGHT}<|end|>", 1.0)]),
        ("D2", [(A, RIGHT, 0.0), (V, f"\n{SAYS_WRONG}<|end|>", 0.0), (I, TOLD, 0.0), (R, f"{RIGHT}<|end|>", 1.0)]),
        ("D3", [(A, RIGHT, 1.0), (V, f"\n{SAYS_CORRECT}<|end|>", 1.0)]),
    ],
)
def test_two_turn_conversations_end_after_the_verdict_and_after_the_revision(chat, name, expected):
    assert pieces(render(name, path(name, chat), config("two_turn"), chat), chat) == expected


@pytest.mark.parametrize("recipe", ["raft", "raft_plus"])
@pytest.mark.parametrize("protocol", ["long_chain", "two_turn"])
@pytest.mark.parametrize(("name", "first"), [("D1", SLIP), ("D2", RIGHT)])
def test_baselines_are_asked_again_without_a_verdict_and_trained_on_the_revision(chat, recipe, protocol, name, first):
    trajectory = render(name, path(name, chat), config(protocol, f"stage1.recipe={recipe}"), chat)
    asked = "<|user|>There may be an error. Correct it.<|end|><|assistant|>"
    assert pieces(trajectory, chat) == [(A, f"{first}<|end|>", 0.0), (I, asked, 0.0), (R, f"{RIGHT}<|end|>", 1.0)]


@pytest.mark.parametrize("recipe", ["ift", "raft_plus"])
@pytest.mark.parametrize("protocol", ["long_chain", "two_turn"])
@pytest.mark.parametrize("name", ["D1", "D2"])
def test_no_weight_falls_on_prompts_wrong_attempts_or_instructions(chat, recipe, protocol, name):
    trajectory = render(name, path(name, chat), config(protocol, f"stage1.recipe={recipe}"), chat)
    example = weighted_example(trajectory)
    start = len(trajectory.prompt_token_ids)
    assert not any(example.weights[:start])
    for turn in trajectory.turns:
        span = example.weights[start : (start := start + len(turn.token_ids))]
        if turn.kind is I or turn.outcome is Outcome.INCORRECT:
            assert not any(span)
    assert any(example.weights)


@pytest.mark.parametrize(
    ("name", "turn", "what"), [("D1", 0, "attempt"), ("D2", 1, "verdict"), ("D1", 2, "instruction"), ("D3", 1, "verdict")]
)
def test_a_demonstration_that_would_train_what_nobody_should_learn_is_refused(chat, name, turn, what):
    trajectory = render(name, path(name, chat), config("two_turn"), chat)
    trajectory.turns[turn].loss_weight = 1.0
    if name == "D3":
        trajectory.turns[0].outcome, trajectory.turns[0].loss_weight = Outcome.INCORRECT, 0.0
    with pytest.raises(ValueError, match=f"its {what} must not be trained"):
        check_weights(trajectory)


def test_the_attempt_of_d3_can_be_left_untrained(chat):
    trajectory = render("D3", path("D3", chat), config("long_chain", "stage1.train_correct_attempts=false"), chat)
    assert [turn.loss_weight for turn in trajectory.turns] == [0.0, 1.0]


@pytest.mark.parametrize("name", ["D1", "D2", "D3"])
def test_tokens_of_the_pieces_are_those_that_were_sampled(chat, name):
    # A piece that no tokenizer would write: "8" and "5" for 85. Tokenising the text again would lose it.
    rows = path(name, chat)
    eight, five = ids_of(chat, "8"), ids_of(chat, "5")
    rows[0]["token_ids"] = [*eight, *five, chat.end_id]
    trajectory = render(name, rows, config(), chat)
    assert trajectory.turns[0].token_ids == eight + five
    assert not any(turn.sampled for turn in trajectory.turns)  # never data for a policy ratio


@pytest.mark.parametrize("protocol", ["long_chain", "two_turn"])
def test_a_teachers_end_token_is_not_trained(chat, two_ends, protocol):
    # A tokenizer that has both; the model ends its messages with <|end|>, the teacher, which wrote the revision, with the other.
    rows, own = path("D1", chat), Chat(two_ends.tokenizer.name_or_path, config().prompts)
    own.end_id, own.stop_ids = chat.end_id, chat.stop_ids
    clean = render("D1", rows, config(protocol), own)
    rows[2] |= {"token_ids": [*rows[2]["token_ids"][:-1], two_ends.end_id]}
    assert render("D1", rows, config(protocol), own) == clean


def test_weights_of_d1_token_by_token(chat):
    trajectory = render("D1", path("D1", chat), config(), chat)
    example = weighted_example(trajectory)
    untrained = chat.opening(question(CHAIN)) + ids_of(chat, SLIP)
    trained = [*ids_of(chat, f"\n{SAYS_WRONG}"), *ids_of(chat, f"\n{RIGHT}"), chat.end_id]
    assert example.token_ids == untrained + trained
    assert example.weights == [0.0] * len(untrained) + [1.0] * len(trained)


@pytest.mark.parametrize("name", ["D1", "D2", "D3"])
def test_a_model_that_writes_a_demonstration_is_cut_into_the_turns_it_was_made_of(chat, name):
    shown = render(name, path(name, chat), config(), chat)
    written = [token for turn in shown.turns for token in turn.token_ids]
    again = Trajectory("t", "p", "", "66", [])
    append_chain(again, Sampled(A, written, [-1.0] * len(written), 0, False), chat, "verify")
    assert [(turn.kind, turn.token_ids, turn.answer, turn.verdict) for turn in again.turns] == [
        (turn.kind, turn.token_ids, turn.answer, turn.verdict) for turn in shown.turns
    ]


def test_the_same_as_a_conversation_with_weighted_pieces(chat):
    trajectory = render("D1", path("D1", chat), config("two_turn"), chat)
    assert [(m["role"], [(p["text"], p["weight"]) for p in m["pieces"]]) for m in messages(trajectory, chat)] == [
        ("user", [(question(CHAIN), 0.0)]),
        ("assistant", [(SLIP, 0.0), (f"\n{SAYS_WRONG}", 1.0)]),
        ("user", [("The solution is wrong. Correct it.", 0.0)]),
        ("assistant", [(RIGHT, 1.0)]),
    ]


def test_verdicts_of_a_rendered_path_are_typed(chat):
    assert [turn.verdict for turn in render("D1", path("D1", chat), config(), chat).turns] == [None, Verdict.WRONG, None]


@pytest.mark.parametrize("name", ["D1", "D3"])
def test_what_a_verdict_says_after_its_marker_is_cut(chat, name):
    rows, clean = path(name, chat), render(name, path(name, chat), config(), chat)
    chatter = " The answer is \\boxed{5}"
    rows[1] |= {"text": rows[1]["text"] + chatter, "token_ids": rows[1]["token_ids"][:-1] + ids_of(chat, chatter) + [chat.end_id]}
    assert render(name, rows, config(), chat) == clean


@pytest.mark.parametrize("protocol", ["long_chain", "two_turn"])
@pytest.mark.parametrize("name", ["D1", "D2", "D3"])
def test_demonstrations_read_as_they_were_made(chat, name, protocol):
    assert reads_as_made(render(name, path(name, chat), config(protocol), chat), chat, "verify")


def test_a_demonstration_whose_attempt_would_be_read_to_its_first_box_only_is_not_used(chat):
    # Graded by its last box; in one message with a verdict the answer ends with the line of the first.
    rows = path("D3", chat)
    text = f"{SLIP}\n{RIGHT}"
    rows[0] |= {"text": text, "token_ids": [*ids_of(chat, text), chat.end_id]}
    assert not reads_as_made(render("D3", rows, config(), chat), chat, "verify")


# --- files


def test_samples_of_another_tokenizer_are_refused(chat, tmp_path):
    attempt = row("p/a0", True, chat=chat) | {"logprobs": [], "seed": 0, "temperature": 1.0, "weights": ""}
    write_block([attempt], {}, tmp_path / "same.parquet")
    check_tokenizer(tmp_path / "same.parquet", chat)
    write_block([attempt | {"token_ids": attempt["token_ids"][1:]}], {}, tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=r"other\.parquet: its token ids do not read as its text"):
        check_tokenizer(tmp_path / "other.parquet", chat)


EITHER = ["p/a0", "p/a0/v0", "p/a0/v0/r0", "p/a0/v1"]  # a correct attempt that was called wrong and correct


@pytest.mark.parametrize(
    ("longest", "classes", "dropped"),
    [(150, ["D2", "D3"], {}), (149, ["D3"], {}), (126, [], {"longer than model.max_length": 1})],
)
def test_an_attempt_has_left_when_neither_of_its_demonstrations_fits(tokenizer_folder, tmp_path, longest, classes, dropped):
    limits = [f"rollout.max_{what}_tokens=9" for what in ("attempt", "verdict", "response")]
    settings = config("long_chain", f"model.path={tokenizer_folder}", f"model.max_length={longest}", *limits)
    assembler = Assembler(settings, tmp_path / "parts")
    (tmp_path / "parts").mkdir()
    verdicts = {"p/a0/v0": "wrong", "p/a0/v1": "correct"}
    rows = [row(name, True, verdicts.get(name), assembler.chat) for name in EITHER]
    write_block([r | {"logprobs": [], "seed": 0, "temperature": 1.0, "weights": ""} for r in rows], {}, tmp_path / "b.parquet")
    found = json.loads(assembler({"path": str(tmp_path / "b.parquet")})["found"])
    assert {name: count for name, count in found["dropped"].items() if count} == dropped
    assert pq.read_table(tmp_path / "parts" / "b.parquet")["class"].to_pylist() == classes


def demonstration(problem: int, n: int) -> dict:
    name = f"p{problem}"
    return {
        "id": f"{name}/{n}", "prompt_id": name, "class": "D1", "text": "", "token_ids": [problem, n], "weights": [0.0, 1.0],
        "messages": [],
    }  # fmt: skip


def test_problems_go_to_train_or_validation_as_a_whole(tmp_path):
    rows = [demonstration(p, n) for p in range(200) for n in range(2)]
    splits = split_of({row["prompt_id"] for row in rows}, load_config(None, ["stage1.validation_share=0.2"]))
    shown, examples = write_demonstrations(rows, splits, tmp_path / "d.parquet")
    train, validation = (load_demonstrations(tmp_path / "d.parquet", split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (320, 80)
    assert not {e.token_ids[0] for e in train} & {e.token_ids[0] for e in validation}
    assert train[0].weights == [0.0, 1.0]
    assert shown["classes"] == {"D1": 400} and shown["splits"] == {"D1 train": 320, "D1 validation": 80}
    assert shown["tokens"] == {"all": 800, "trained": 400, "trained D1": 400} and len(examples) == 2


def test_at_least_one_problem_is_held_out():
    assert sorted(split_of({"a", "b"}, load_config(None, ["stage1.validation_share=0.01"])).values()) == ["train", "validation"]
