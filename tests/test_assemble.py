"""From hand-made samples to demonstrations."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.config import Config, ConfigError, Stage1Config, load_config
from srl.learner.batch import weighted_example
from srl.pipelines.assemble import (
    balance,
    check_tokenizer,
    check_weights,
    choose,
    load_demonstrations,
    messages,
    render,
    split_of,
    write_demonstrations,
)
from srl.pipelines.card import add, bucket, card_text, data_card, difficulty_of, problem_statistics
from srl.pipelines.classes import candidates
from srl.pipelines.samples import write_block
from srl.protocols.action import Sampled
from srl.protocols.chat import Chat
from srl.protocols.receive import append_chain
from srl.tasks.chains import Chain, check, question, solution, verdict_line
from srl.trajectory import Outcome, Trajectory, TurnKind, Verdict

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741
CHAIN = Chain(52, (-30, 25, 38, -19))  # 52, 22, 47, 85, 66
TRUE, FALSE = CHAIN.values(), [value - 10 for value in CHAIN.values()]  # end in 66 and 56
RIGHT, SLIP = solution(CHAIN, TRUE), solution(CHAIN, FALSE)
SAYS_CORRECT = check(CHAIN, TRUE)[0] + verdict_line(True)
SAYS_WRONG = check(CHAIN, FALSE)[0] + verdict_line(False)


def row(name: str, right: bool | None, verdict: str | None = None, chat: Chat | None = None) -> dict:
    """A sample by its id: p/a0 is an attempt, p/a0/v0 a verdict on it, p/a0/v0/r0 a revision.

    `right` is what the grader said; for verdicts, what it said of the attempt.
    """
    parent, _, last = name.rpartition("/")
    kind = {"a": A, "v": V, "r": R}[last[0]]
    answer = RIGHT if right else SLIP
    text = {A: answer, V: SAYS_CORRECT if verdict == "correct" else SAYS_WRONG, R: answer}[kind]
    accepted = {A: True, V: verdict == ("correct" if right else "wrong"), R: bool(right)}[kind]
    return {
        "id": name,
        "prompt_id": name.split("/")[0],
        "question": question(CHAIN),
        "gold": "66",
        "kind": kind.value,
        "parent": "" if kind is A else parent,
        "text": text,
        "token_ids": ids_of(chat, text) + [chat.end_id] if chat else [],
        "truncated": False,
        "answer": None if kind is V else "66" if right else "56",
        "outcome": None if kind is V else "correct" if right else "incorrect",
        "verdict": verdict,
        "accepted": accepted,
    }


def ids_of(chat: Chat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False).input_ids


def chosen(rows: list[dict], seed: int = 0, **stage1) -> tuple[list[tuple[str, list[str]]], dict[str, int]]:
    found, reasons = choose(rows, Stage1Config(**stage1), seed)
    return [(name, [r["id"] for r in path]) for name, path in found], dict(reasons)


# --- choose


def test_a_wrong_attempt_told_so_and_corrected_is_d1():
    rows = [row("p/a0", False), row("p/a0/v0", False, "wrong"), row("p/a0/v0/r0", True)]
    assert chosen(rows) == ([("D1", ["p/a0", "p/a0/v0", "p/a0/v0/r0"])], {})


def test_a_correct_attempt_told_that_it_is_wrong_and_still_correct_is_d2():
    rows = [row("p/a0", True), row("p/a0/v0", True, "wrong"), row("p/a0/v0/r0", True), row("p/a0/v1", True, "correct")]
    assert chosen(rows) == ([("D2", ["p/a0", "p/a0/v0", "p/a0/v0/r0"])], {})


def test_a_correct_attempt_and_a_verdict_that_says_so_is_d3():
    rows = [row("p/a0", True), row("p/a0/v0", True, "wrong"), row("p/a0/v0/r0", False), row("p/a0/v1", True, "correct")]
    assert chosen(rows) == ([("D3", ["p/a0", "p/a0/v1"])], {})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("p/a0", True)], "attempt: never judged, the problem had enough of its kind"),
        ([row("p/a0", True), row("p/a0/v0", True, "wrong")], "correct attempt: no verdict agrees"),
        ([row("p/a0", True), row("p/a0/v0", True, None)], "correct attempt: no verdict agrees"),
        ([row("p/a0", False), row("p/a0/v0", False, "correct")], "wrong attempt: no verdict agrees"),
        ([row("p/a0", False), row("p/a0/v0", False, "wrong")], "wrong attempt: no revision is right"),
        (
            [row("p/a0", False), row("p/a0/v0", False, "wrong"), row("p/a0/v0/r0", False)],
            "wrong attempt: no revision is right",
        ),
    ],
)
def test_every_attempt_that_is_left_out_has_a_reason(rows, reason):
    assert chosen(rows) == ([], {reason: 1})


def test_a_revision_of_a_verdict_that_said_correct_is_never_used():
    rows = [row("p/a0", False), row("p/a0/v0", False, "correct"), row("p/a0/v0/r0", True)]
    assert chosen(rows) == ([], {"wrong attempt: no verdict agrees": 1})


@pytest.mark.parametrize("verdict", ["wrong", "correct"])
def test_an_attempt_that_was_not_graded_in_time_gives_no_demonstration(verdict):
    # It may be right: "wrong" about it is not known to be true, nor is "correct", even if the sampler accepted the verdict.
    attempt, said, revised = (row(name, True, verdict) for name in ("p/a0", "p/a0/v0", "p/a0/v0/r0"))
    attempt["outcome"], said["accepted"] = Outcome.TIMEOUT.value, True
    assert candidates(attempt, {"p/a0": [said], "p/a0/v0": [revised]}) == ([], "attempt: not graded in time")
    graded = [row("p/a1", True), row("p/a1/v0", True, "correct")]
    assert chosen([attempt, said, revised, *graded]) == ([("D3", ["p/a1", "p/a1/v0"])], {"attempt: not graded in time": 1})


@pytest.mark.parametrize(("outcome", "name"), [("incorrect", "D1"), ("no_answer", "D1"), ("unparsable", "D1"), ("correct", "D2")])
def test_every_other_grade_of_the_same_attempt_gives_one(outcome, name):
    right = outcome == "correct"
    rows = [row("p/a0", right) | {"outcome": outcome}, row("p/a0/v0", right, "wrong"), row("p/a0/v0/r0", True)]
    assert chosen(rows) == ([(name, ["p/a0", "p/a0/v0", "p/a0/v0/r0"])], {})


def test_an_attempt_that_was_cut_off_is_no_demonstration_and_neither_is_a_revision():
    rows = [row("p/a0", False), row("p/a0/v0", False, "wrong"), row("p/a0/v0/r0", True), row("p/a0/v0/r1", True)]
    rows[2]["truncated"] = True
    assert chosen(rows)[0] == [("D1", ["p/a0", "p/a0/v0", "p/a0/v0/r1"])]
    assert chosen([rows[0] | {"truncated": True}, *rows[1:]]) == ([], {"attempt: cut by the token budget": 1})


def test_verdicts_of_an_attempt_must_agree_with_its_grade_as_often_as_asked():
    # Two of three verdicts with format agree; the one without format does not count.
    rows = family(0, True, ["correct", "correct", "wrong", None], [])
    assert chosen(rows, agreement=0.66)[0] == [("D3", ["p/a0", chosen(rows)[0][0][1][1]])]
    assert chosen(rows, agreement=0.67) == ([], {"correct attempt: too few of its verdicts agree": 1})


def test_without_c2c_an_attempt_that_could_be_d2_is_d3():
    rows = [row("p/a0", True), row("p/a0/v0", True, "wrong"), row("p/a0/v0/r0", True), row("p/a0/v1", True, "correct")]
    assert chosen(rows, c2c_share=0) == ([("D3", ["p/a0", "p/a0/v1"])], {})
    assert chosen(rows[:3], c2c_share=0) == ([], {"D2: not wanted in this set": 1})


def test_an_attempt_whose_first_class_is_full_is_taken_for_its_second():
    rows = [r for n in range(2) for r in family(n, True, ["wrong", "correct"], [True])]
    assert Counter(name for name, _ in chosen(rows, per_prompt_and_class=1)[0]) == {"D2": 1, "D3": 1}


def test_the_baselines_take_revisions_alone():
    rows = family(0, False, ["wrong"], [True]) + family(1, True, ["wrong"], [True]) + family(2, True, ["correct"], [])
    assert {name for name, _ in chosen(rows, recipe="raft")[0]} == {"D1"}
    assert {name for name, _ in chosen(rows, recipe="raft_plus")[0]} == {"D1", "D2"}
    assert {name for name, _ in chosen(rows)[0]} == {"D1", "D2", "D3"}


def test_the_cap_per_problem_counts_classes_apart_and_says_what_it_left_out():
    rows = []
    for n in range(3):
        rows += [row(f"p/a{n}", False), row(f"p/a{n}/v0", False, "wrong"), row(f"p/a{n}/v0/r0", True)]
        rows += [row(f"p/a{n + 3}", True), row(f"p/a{n + 3}/v0", True, "correct")]
    for cap, left_out in ((1, {"D1: cap per problem": 2, "D3: cap per problem": 2}), (3, {})):
        found, reasons = chosen(rows, per_prompt_and_class=cap)
        assert Counter(name for name, _ in found) == {"D1": cap, "D3": cap} and reasons == left_out


def family(n: int, right: bool, verdicts: list[str | None], revisions: list[bool]) -> list[dict]:
    rows = [row(f"p/a{n}", right)]
    for v, verdict in enumerate(verdicts):
        rows.append(row(f"p/a{n}/v{v}", right, verdict))
        if verdict == "wrong":
            rows += [row(f"p/a{n}/v{v}/r{r}", good) for r, good in enumerate(revisions)]
    return rows


VERDICTS = st.lists(st.sampled_from(["correct", "wrong", None]), max_size=3)
SHAPES = st.lists(st.tuples(st.booleans(), VERDICTS, st.lists(st.booleans(), max_size=2)), min_size=1, max_size=4)
FAMILIES = SHAPES.map(lambda shapes: [r for n, shape in enumerate(shapes) for r in family(n, *shape)])


@given(FAMILIES, st.integers(0, 5), st.integers(1, 2), st.randoms(use_true_random=False))
def test_the_order_in_which_samples_arrive_changes_nothing(rows, seed, cap, rng: random.Random):
    shuffled = rng.sample(rows, len(rows))
    assert chosen(rows, seed, per_prompt_and_class=cap) == chosen(shuffled, seed, per_prompt_and_class=cap)


@given(FAMILIES)
def test_every_attempt_is_chosen_once_or_has_a_reason_and_ends_in_a_right_answer(rows):
    found, reasons = choose(rows, Stage1Config(), 0)
    assert len(found) + sum(reasons.values()) == sum(r["kind"] == A for r in rows)
    assert len({path[0]["id"] for _, path in found}) == len(found)
    for name, path in found:
        assert [r["parent"] for r in path] == ["", *(r["id"] for r in path[:-1])]
        answers = [r["outcome"] for r in path if r["kind"] != V]
        assert answers == {"D1": ["incorrect", "correct"], "D2": ["correct", "correct"], "D3": ["correct"]}[name]
        assert path[1]["verdict"] == ("correct" if name == "D3" else "wrong")


def test_the_seed_decides_which_of_several_is_taken():
    rows = [r for n in range(6) for r in family(n, True, ["correct"], [])]
    assert len({chosen(rows, seed)[0][0][1][0] for seed in range(20)}) > 1


# --- balance


def kept(counts: dict[str, int], **stage1) -> dict[str, int]:
    classes = [name for name, count in counts.items() for _ in range(count)]
    ids = [f"{name}-{n}" for n, name in enumerate(classes)]
    found = Counter(classes[index] for index in balance(classes, ids, Stage1Config(**stage1), seed=0))
    return {name: found[name] for name in ("D1", "D2", "D3")}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Half wrong first, half correct first, a tenth of all D2.
        ({"D1": 100, "D2": 100, "D3": 100}, {"D1": 100, "D2": 20, "D3": 80}),
        ({"D1": 100, "D2": 5, "D3": 300}, {"D1": 100, "D2": 5, "D3": 95}),
        ({"D1": 300, "D2": 0, "D3": 60}, {"D1": 60, "D2": 0, "D3": 60}),
        # 40 D3 are 0.5 - 0.1 of 100.
        ({"D1": 300, "D2": 90, "D3": 40}, {"D1": 50, "D2": 10, "D3": 40}),
        ({"D1": 100, "D2": 100, "D3": 0}, {"D1": 0, "D2": 0, "D3": 0}),
        ({"D1": 0, "D2": 10, "D3": 10}, {"D1": 0, "D2": 0, "D3": 0}),
    ],
)
def test_shares_of_the_mix_by_hand(counts, expected):
    assert kept(counts, correct_share=0.5, c2c_share=0.1) == expected


def test_an_uneven_mix_by_hand():
    # 90 wrong first are 0.75 of 120: 30 correct first, at most 0.1 * 120 = 12 of them D2.
    assert kept({"D1": 90, "D2": 50, "D3": 50}, correct_share=0.25, c2c_share=0.1) == {"D1": 90, "D2": 12, "D3": 18}


@pytest.mark.parametrize(
    ("recipe", "size", "expected"),
    [
        ("ift", 0, {"D1": 100, "D2": 20, "D3": 80}),
        ("ift", 60, {"D1": 30, "D2": 6, "D3": 24}),
        ("raft", 0, {"D1": 100, "D2": 0, "D3": 0}),
        ("raft", 60, {"D1": 60, "D2": 0, "D3": 0}),
        # A tenth of all: 11 of 111.
        ("raft_plus", 0, {"D1": 100, "D2": 11, "D3": 0}),
        ("raft_plus", 60, {"D1": 54, "D2": 6, "D3": 0}),
    ],
)
def test_sets_of_one_size_can_be_made_of_the_same_samples(recipe, size, expected):
    counts = {"D1": 100, "D2": 100, "D3": 100}
    assert kept(counts, correct_share=0.5, c2c_share=0.1, recipe=recipe, size=size) == expected


def test_c2c_may_be_everything_that_begins_correct():
    assert kept({"D1": 50, "D2": 80, "D3": 80}, correct_share=0.5, c2c_share=0.6) == {"D1": 50, "D2": 50, "D3": 0}


SHARES = st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9])
COUNTS = st.integers(0, 60)


@given(st.fixed_dictionaries({"D1": COUNTS, "D2": COUNTS, "D3": COUNTS}), SHARES, st.sampled_from([0.0, 0.1, 0.3, 0.8]))
def test_the_mix_has_its_shares_within_one_trajectory(counts, correct_share, c2c_share):
    found = kept(counts, correct_share=correct_share, c2c_share=c2c_share)
    total = sum(found.values())
    assert all(found[name] <= counts[name] for name in counts)
    assert abs(found["D2"] + found["D3"] - correct_share * total) <= 1.5
    assert found["D2"] <= c2c_share * total + 1.5


def test_balance_does_not_depend_on_order():
    classes = ["D1"] * 20 + ["D3"] * 30
    ids = [f"{n}" for n in range(50)]
    order = random.Random(1).sample(range(50), 50)
    first = {ids[n] for n in balance(classes, ids, Stage1Config(), seed=0)}
    again = balance([classes[n] for n in order], [ids[n] for n in order], Stage1Config(), seed=0)
    assert first == {ids[order[n]] for n in again}


# --- render


def path(name: str, chat: Chat) -> list[dict]:
    right = name != "D1"
    if name == "D3":
        return [row("p/a0", True, chat=chat), row("p/a0/v0", True, "correct", chat)]
    return [row("p/a0", right, chat=chat), row("p/a0/v0", right, "wrong", chat), row("p/a0/v0/r0", True, chat=chat)]


def config(protocol: str = "long_chain", *more: str) -> Config:
    return load_config(None, [f"protocol.name={protocol}", *more])


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


# --- files


def test_samples_of_another_tokenizer_are_refused(chat, tmp_path):
    attempt = row("p/a0", True, chat=chat) | {"logprobs": [], "seed": 0, "temperature": 1.0, "weights": ""}
    write_block([attempt], {}, tmp_path / "same.parquet")
    check_tokenizer(tmp_path / "same.parquet", chat)
    write_block([attempt | {"token_ids": attempt["token_ids"][1:]}], {}, tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=r"other\.parquet: its token ids do not read as its text"):
        check_tokenizer(tmp_path / "other.parquet", chat)


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


# --- the data card


SAMPLED = family(0, False, ["wrong", "correct", None], [True, False]) + family(1, True, ["correct", "correct"], [])


def test_the_data_card_counts_every_kind_of_sample():
    found = problem_statistics(SAMPLED)
    assert found["counts"] == {
        "attempts": 2, "attempts correct": 1, "attempts incorrect": 1, "revisions": 2, "revisions accepted": 1, "verdicts": 5,
        "verdicts accepted": 3, "verdicts without format": 1,
    }  # fmt: skip
    assert found["verdicts on wrong attempts"] == {"wrong": 1, "correct": 1, "no format": 1}
    assert found["verdicts on correct attempts"] == {"correct": 2}
    assert found["verdicts of one correct attempt"] == {"all alike": 1}
    assert found["verdicts of one wrong attempt"] == {"not all alike": 1}
    assert found["revisions of wrong attempts"] == {"correct": 1, "incorrect": 1}
    assert found["problems by share of right attempts"] == {"0.5": 1}


def test_difficulty_is_the_share_of_right_attempts():
    assert difficulty_of(SAMPLED) == {"prompt_id": "p", "attempts": 2, "right": 1, "share": 0.5}


def test_statistics_of_parts_add_up():
    total = {}
    for _ in range(2):
        add(total, problem_statistics(SAMPLED))
    assert total["counts"]["verdicts"] == 10


@pytest.mark.parametrize(("tokens", "least"), [(0, 0), (3, 0), (31, 28), (32, 32), (71, 64), (1023, 896), (1024, 1024)])
def test_bars_of_a_length_histogram_grow_with_the_length(tokens, least):
    assert bucket(tokens) == str(least)


def test_the_card_as_text_has_every_number_and_marks_what_is_trained(chat):
    shown = {"id": "p/a0", "class": "D1", "messages": messages(render("D1", path("D1", chat), config(), chat), chat)}
    card = data_card(config(), problem_statistics(SAMPLED), {"balance of the mix": 7}, {"classes": Counter(D1=3)}, [shown])
    text = card_text(card)
    assert "| balance of the mix | 7 | 100.0 |" in text and "| verdicts accepted | 3 |\n" in text and "| D1 | 3 | 100.0 |" in text
    assert f"{RIGHT}   <- trained" in text and f"{SLIP}   <- trained" not in text
