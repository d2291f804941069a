from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.reward.answer import last_boxed, normalise, plain_number, too_explosive

PLAIN = st.text(st.characters(blacklist_characters="{}\\", blacklist_categories=("Cs",)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{42}", "42"),
        (r"\\boxed{840}", "840"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed{42}}}}", "42"),
        (r"\boxed{41} Wait. The answer is \boxed{42}", "42"),
        (r"\boxed{42} and then \boxed{43", "42"),
        (r"\boxed{43 is not closed, \boxed{42}", "42"),
        (r"\boxed{42", None),
        (r"\boxed 42", None),
        ("no box at all 42", None),
        (r"<think>\boxed{41}</think> It is \boxed{42}", "42"),
        (r"<think>\boxed{42}</think> Done.", None),
    ],
)
def test_the_last_balanced_box_after_thinking_is_the_answer(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize("between", [", ", " ", " and ", ", and ", " or ", r"\quad", r"\text{ and }", r"$ and $", r"\) and \("])
def test_adjacent_boxes_are_one_answer(between: str) -> None:
    assert last_boxed(rf"x is \boxed{{1}}{between}\boxed{{2}}.") == "1, 2"


def test_boxes_apart_and_repeated_boxes_are_not_joined() -> None:
    assert last_boxed("\\boxed{1}\n\\boxed{2}") == "2"
    assert last_boxed(r"\boxed{2}, \boxed{2}") == "2"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{42}\n[VERIFY] correct", "42"),
        (r"\boxed{42} \boxed{\text{[VERIFY] wrong.}}", "42"),
        (r"\boxed{42} [VERIFY] \boxed{correct}", "42"),
        (r"\boxed{42} [VERIFY] the answer \boxed{43} is wrong", "42"),
        (r"\boxed{42} Is my most recent final answer correct (Yes or No)? \boxed{Yes}.", "42"),
        ("\\boxed{41}\n[VERIFY] wrong\nc = 42, so \\boxed{42}", "42"),
        (r"[VERIFY] \boxed{wrong}", None),
    ],
)
def test_a_box_in_a_verdict_is_not_an_answer(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@given(PLAIN, PLAIN, PLAIN)
def test_what_is_boxed_comes_back_as_it_was(before: str, content: str, after: str) -> None:
    if "</think>" not in before + content + after and "VERIFY" not in (before + content).upper():
        assert last_boxed(f"{before} \\boxed{{{content}}} {after}") == content


PIECES = ["\\boxed{", "{", "}", "\\", "^", "**", "!", "9", "77777", "[VERIFY]", ",", " and ", "e", "x", ".", "$", "(", ")", "\n"]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_nothing_written_by_a_model_raises(text: str) -> None:
    answer = last_boxed(text)
    for piece in (text, answer or ""):
        plain_number(normalise(piece))
        too_explosive(piece)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (" $42$. ", "42"),
        ("18.", "18"),
        (r"1, 2, \ldots", r"1, 2, \ldots"),
        (r"\$42", r"\$42"),
        ("1,234,567.5", "1234567.5"),
        (r"10,\!000", "10000"),
        ("1 000", "1000"),
        ("3,5", "3,5"),
        (r"\frac{12}{5,525}", r"\frac{12}{5525}"),
        (r"\{100,200\}", r"\{100,200\}"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("-1e-5", r"-1 \times 10^{-5}"),
        ("2e", "2e"),
        ("-3./2", "-3/2"),
        ("−42", "-42"),
    ],
)
def test_normalise_gives_one_spelling(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


@given(st.text(st.sampled_from("0123456789.,eE$\\! +-x{}"), max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


def test_plain_numbers_are_exact() -> None:
    assert plain_number("-0.1") == Fraction(-1, 10)
    assert plain_number(r"4.5 \times 10^{-3}") == Fraction(9, 2000)
    assert plain_number(r"10^{3}") == 1000
    assert plain_number(r"6 \cdot 10^{99999}") is None
    assert plain_number("1/2") is None


@pytest.mark.parametrize(
    "answer",
    ["1" * 2001, "{" * 51 + "}" * 51, "9^{9^{9}}", "9^9^9^9", "x^{y^{z^{w}}}", "9^{(9^9)}", "0.9^{999999999999}"]
    + [r"\prod_{k=1}^{10^{8}} k", "1000000!", "(10^{10})!", "((9!)!)!", r"\binom{10^9}{5\cdot 10^8}", "2**100000"]
    + [r"4^{\frac{1111111111}{222222}}"],
)
def test_explosive_answers_are_refused_unread(answer: str) -> None:
    assert too_explosive(answer)


@pytest.mark.parametrize(
    "answer",
    ["", "42", "e^{-x^{2}}", "2^{2^{3}}", r"\frac{100!}{2^{50}}", r"2011^{2009}(1005^{2011}-1)", r"4.5 \times 10^{33}"]
    + [r"\frac{123456789}{2}", r"\binom{40}{10}\binom{40}{20}^3", "(n+1)!", r"\sum_{k=1}^{n} k^2"],
)
def test_ordinary_answers_are_not_refused(answer: str) -> None:
    assert not too_explosive(answer)
