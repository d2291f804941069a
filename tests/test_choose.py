"""Which samples become demonstrations, and how many of each class."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.config import Config, Stage1Config
from srl.pipelines.assemble import REMEDIES, balance, choose, remedy
from srl.pipelines.classes import candidates
from srl.trajectory import Outcome
from tests.demonstration_rows import A, V, family, row


def chosen(rows: list[dict], seed: int = 0, **stage1) -> tuple[list[tuple[str, list[str]]], dict[str, int]]:
    found, reasons = choose(rows, Stage1Config(**stage1), seed, "verify")
    return [(name, [r["id"] for r in path]) for name, path in found], dict(reasons)


# --- choose


def test_a_wrong_attempt_told_so_and_corrected_is_d1():
    rows = [row("p/a0", False), row("p/a0/v0", False, "wrong"), row("p/a0/v0/r0", True)]
    assert chosen(rows) == ([("D1", ["p/a0", "p/a0/v0", "p/a0/v0/r0"])], {})


def test_a_correct_attempt_told_that_it_is_wrong_and_still_correct_is_d2():
    rows = [row("p/a0", True), row("p/a0/v0", True, "wrong"), row("p/a0/v0/r0", True)]
    assert chosen(rows) == ([("D2", ["p/a0", "p/a0/v0", "p/a0/v0/r0"])], {})


def test_a_correct_attempt_and_a_verdict_that_says_so_is_d3():
    rows = [row("p/a0", True), row("p/a0/v0", True, "wrong"), row("p/a0/v0/r0", False), row("p/a0/v1", True, "correct")]
    assert chosen(rows) == ([("D3", ["p/a0", "p/a0/v1"])], {})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("p/a0", True)], "attempt: never judged, the problem had enough of its kind"),
        ([row("p/a0", True), row("p/a0/v0", True, "wrong")], "correct attempt: no verdict agrees"),
        ([row("p/a0", True), row("p/a0/v0", True, None)], "correct attempt: no verdict has the form"),
        ([row("p/a0", False), row("p/a0/v0", False, None)], "wrong attempt: no verdict has the form"),
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
    beside = [row("p/a0/v1", False, "wrong"), row("p/a0/v1/r0", False)]
    assert chosen(rows + beside) == ([], {"wrong attempt: no revision is right": 1})


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
    assert chosen(rows[:3]) == ([], {"wrong attempt: no revision is right": 1})
    assert chosen([rows[0] | {"truncated": True}, *rows[1:]]) == ([], {"attempt: cut by the token budget": 1})


def test_when_nothing_stays_the_commonest_reason_names_settings_that_there_are():
    left = {"wrong attempt: no verdict has the form": 9, "attempt: cut by the token budget": 3}
    assert remedy(left) == f"most left as 'wrong attempt: no verdict has the form': see {REMEDIES['no verdict has the form']}"
    assert remedy({"D1: cap per problem": 2}) == remedy({}) == "sample more with stage1.prompts or stage1.attempts"
    for setting in re.findall(r"\w+\.\w+", " ".join(REMEDIES.values())):
        section, key = setting.split(".")
        assert hasattr(getattr(Config(), section), key), setting


def test_verdicts_of_an_attempt_must_agree_with_its_grade_as_often_as_asked():
    # Two of three verdicts with format agree; the one without format does not count.
    rows = family(0, True, ["correct", "correct", "wrong", None], [])
    assert chosen(rows, agreement=0.66)[0] == [("D3", ["p/a0", chosen(rows)[0][0][1][1]])]
    assert chosen(rows, agreement=0.67) == ([], {"correct attempt: too few of its verdicts agree": 1})
    some = family(0, True, ["correct"] * 14 + ["wrong"] * 11, [])
    assert len(chosen(some, agreement=0.56)[0]) == 1  # 0.56 * 25 is a little more than 14


def test_without_c2c_an_attempt_that_could_be_d2_is_d3():
    rows = [row("p/a0", True), row("p/a0/v0", True, "wrong"), row("p/a0/v0/r0", True), row("p/a0/v1", True, "correct")]
    assert chosen(rows, c2c_share=0) == ([("D3", ["p/a0", "p/a0/v1"])], {})
    assert chosen(rows[:3], c2c_share=0) == ([], {"D2: not wanted in this set": 1})


def test_an_attempt_whose_first_class_is_full_is_taken_for_its_second():
    rows = [r for n in range(2) for r in family(n, True, ["wrong", "correct"], [True])]
    found, _ = chosen(rows, per_prompt_and_class=1)
    assert sorted(name for name, _ in found) == ["D2", "D3"] and {path[0] for _, path in found} == {"p/a0", "p/a1"}


def test_an_attempt_chosen_for_d2_also_shows_its_d3_where_there_is_room():
    either = family(0, True, ["wrong", "correct"], [True])
    assert chosen(either) == ([("D2", ["p/a0", "p/a0/v0", "p/a0/v0/r0"]), ("D3", ["p/a0", "p/a0/v1"])], {})
    # One that can only be D3 comes before it, whichever is looked at first.
    rows = either + family(1, True, ["correct"], [])
    for seed in range(10):
        assert sorted(chosen(rows, seed, per_prompt_and_class=1)[0]) == [
            ("D2", ["p/a0", "p/a0/v0", "p/a0/v0/r0"]),
            ("D3", ["p/a1", "p/a1/v0"]),
        ]
    said = next(r["text"] for r in rows if r["id"] == "p/a1/v0")
    alike = [r | {"text": "the attempt" if r["kind"] == A else said if r["verdict"] == "correct" else r["text"]} for r in rows]
    assert sorted(name for name, _ in chosen(alike)[0]) == ["D2", "D3"]


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


def same_words(rows: list[dict], *others: int) -> list[dict]:
    """Attempts of those numbers, and what follows them, say the same as attempt 0."""
    texts = {r["id"]: r["text"] for r in rows}
    return [
        r | {"text": texts[re.sub(r"^p/a\d+", "p/a0", r["id"])]} if int(r["id"].split("/")[1][1:]) in others else r for r in rows
    ]


def test_of_demonstrations_that_say_the_same_one_is_taken_and_the_others_cost_no_place_under_the_cap():
    rows = [r for n in range(5) for r in family(n, True, ["correct"], [])]
    assert chosen(rows, per_prompt_and_class=3)[1] == {"D3: cap per problem": 2}
    found, reasons = chosen(same_words(rows, 1, 2), per_prompt_and_class=3)
    assert len(found) == 3 and reasons == {"D3: duplicate": 2}
    told = [r for n in range(3) for r in family(n, False, ["wrong"], [True])]
    assert chosen(same_words(told, 1))[1] == {"D1: duplicate": 1}
    # Another verdict on the same words is another demonstration, but none without verdicts.
    told = same_words(told, 1, 2)
    told[4]["text"] = "Not so: [VERIFY] wrong"
    assert len(chosen(told)[0]) == 2 and chosen(told)[1] == {"D1: duplicate": 1}
    assert len(chosen(told, recipe="raft")[0]) == 1
    # What a verdict says after its marker is cut.
    told[4]["text"] = told[1]["text"] + " Let me see."
    assert len(chosen(told)[0]) == 1


VERDICTS = st.lists(st.sampled_from(["correct", "wrong", None]), max_size=3)
SHAPES = st.lists(st.tuples(st.booleans(), VERDICTS, st.lists(st.booleans(), max_size=2)), min_size=1, max_size=4)
FAMILIES = SHAPES.map(lambda shapes: [r for n, shape in enumerate(shapes) for r in family(n, *shape)])


def of_problem(number: int, rows: list[dict]) -> list[dict]:
    """The same samples of problem p<number>."""
    return [r | {key: r[key].replace("p/", f"p{number}/") for key in ("id", "parent", "text")} for r in rows]


@given(FAMILIES, st.integers(0, 5), st.integers(1, 2), st.randoms(use_true_random=False))
def test_the_order_in_which_samples_arrive_changes_nothing(rows, seed, cap, rng: random.Random):
    shuffled = rng.sample(rows, len(rows))
    assert chosen(rows, seed, per_prompt_and_class=cap) == chosen(shuffled, seed, per_prompt_and_class=cap)


@given(FAMILIES)
def test_every_attempt_is_chosen_once_or_has_a_reason_and_ends_in_a_right_answer(rows):
    found, reasons = choose(rows, Stage1Config(), 0, "verify")
    classes = {attempt: [name for name, path in found if path[0]["id"] == attempt] for attempt in {p[0]["id"] for _, p in found}}
    assert len(classes) + sum(reasons.values()) == sum(r["kind"] == A for r in rows)
    assert all(names in (["D1"], ["D2"], ["D3"], ["D2", "D3"]) for names in classes.values())
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


def made_of(problems: list[list[dict]], **stage1) -> list[tuple[str, str]]:
    """(class, id of the attempt) of the demonstrations in a set of these problems' samples."""
    found = [one for rows in problems for one in choose(rows, Stage1Config(**stage1), 0, "verify")[0]]
    classes, ids = [name for name, _ in found], [f"{path[-1]['id']}/{name}" for name, path in found]
    return [(classes[index], found[index][1][0]["id"]) for index in balance(classes, ids, Stage1Config(**stage1), seed=0)]


WRONG, TOLD_WRONG, EITHER, TOLD_RIGHT = (
    (False, ["wrong"], [True]), (True, ["wrong"], [True]), (True, ["wrong", "correct"], [True]), (True, ["correct"], []),
)  # fmt: skip


@pytest.mark.parametrize(
    ("either", "told_wrong", "told_right", "expected", "without"),
    [
        # 12 begin correct: with 12 wrong ones 24, of these at most 2 D2, so that one at least of the 8 is not D3.
        (8, 1, 3, {"D1": 12, "D2": 2, "D3": 10}, {"D1": 11, "D3": 11}),
        # 8 D3 are 0.5 - 0.1 of 20: both D2 must be attempts that cannot be D3.
        (8, 4, 0, {"D1": 10, "D2": 2, "D3": 8}, {"D1": 8, "D3": 8}),
        (8, 0, 0, {"D1": 8, "D2": 1, "D3": 7}, {"D1": 8, "D3": 8}),
        (0, 4, 8, {"D1": 10, "D2": 2, "D3": 8}, {"D1": 8, "D3": 8}),
    ],
)
def test_attempts_that_can_be_d2_or_d3_are_what_the_mix_needs(either, told_wrong, told_right, expected, without):
    shapes = [WRONG] * 20 + [TOLD_WRONG] * told_wrong + [EITHER] * either + [TOLD_RIGHT] * told_right
    problems = [of_problem(number, family(0, *shape)) for number, shape in enumerate(shapes)]
    found = made_of(problems, c2c_share=0.1)
    assert Counter(name for name, _ in found) == expected
    assert len({attempt for _, attempt in found}) == len(found)
    assert Counter(name for name, _ in made_of(problems, c2c_share=0)) == without


@given(
    st.lists(st.lists(st.sampled_from([WRONG, TOLD_WRONG, EITHER, TOLD_RIGHT]), min_size=1, max_size=4), min_size=1, max_size=6),
    SHARES,
    st.sampled_from([0.1, 0.3, 0.8]),
    st.integers(1, 2),
    st.sampled_from([0, 3]),
)
def test_asking_for_c2c_never_makes_a_set_smaller(shapes, correct_share, c2c_share, cap, size):
    problems = [
        of_problem(number, [r for n, shape in enumerate(attempts) for r in family(n, *shape)])
        for number, attempts in enumerate(shapes)
    ]
    settings = {"correct_share": correct_share, "per_prompt_and_class": cap, "size": size}
    found, without = made_of(problems, c2c_share=c2c_share, **settings), made_of(problems, c2c_share=0, **settings)
    assert len(found) >= len(without)
    assert len({attempt for _, attempt in found}) == len(found)
    assert all(count <= cap for count in Counter((name, attempt.split("/")[0]) for name, attempt in found).values())
    counts = Counter(name for name, _ in found)
    assert abs(counts["D2"] + counts["D3"] - correct_share * len(found)) <= 1.5
    assert counts["D2"] <= c2c_share * len(found) + 1.5


def test_balance_does_not_depend_on_order():
    classes = ["D1"] * 20 + ["D3"] * 30
    ids = [f"{n}" for n in range(50)]
    order = random.Random(1).sample(range(50), 50)
    first = {ids[n] for n in balance(classes, ids, Stage1Config(), seed=0)}
    again = balance([classes[n] for n in order], [ids[n] for n in order], Stage1Config(), seed=0)
    assert first == {ids[order[n]] for n in again}


@given(
    st.tuples(*[st.integers(0, 60)] * 3),
    st.integers(1, 40),
    st.sampled_from([0.33, 0.5, 0.67]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from(["ift", "raft", "raft_plus"]),
)
def test_a_set_has_no_more_than_its_size_and_as_many_where_there_are_enough(found, size, share, c2c_share, recipe):
    settings = {"size": size, "correct_share": share, "c2c_share": c2c_share, "recipe": recipe}
    counts = kept(dict(zip(("D1", "D2", "D3"), found, strict=True)), **settings)
    assert sum(counts.values()) <= size
    assert sum(kept({"D1": 60, "D2": 60, "D3": 60}, **settings).values()) == size
    if recipe == "ift":
        assert abs(counts["D1"] - (1 - share) * sum(counts.values())) <= 0.5
