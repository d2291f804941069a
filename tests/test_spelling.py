from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.reward.refusals import too_explosive
from srl.reward.spelling import compact, normalise, plain_fraction, plain_number, values, words

PIECES = [
    "{",
    "}",
    "\\",
    "^",
    "**",
    "!",
    "9",
    "77777",
    ",",
    " and ",
    "e",
    "x",
    ".",
    "$",
    "(",
    ")",
    "_{",
    "\\frac",
    "²",
    "\\text{",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_nothing_written_by_a_model_raises(text: str) -> None:
    normal = normalise(text)
    assert compact(compact(normal)) == compact(normal)
    for read in (plain_number, plain_fraction, values, words, too_explosive):
        read(normal)


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
        ("4²", "4^{2}"),
        (r"\text{025}", "025"),
        (r"\text{Friday}", r"\text{Friday}"),
        ("3 hours", "3"),
        ("12 square units", "12"),
        (r"5.4 \text{ cents}", "5.4"),
        (r"15\mbox{ cm}^2", "15"),
        (r"3 \text{ million}", r"3 \times 10^{6}"),
        (r"\$1,200.5\ \text{thousand dollars}", r"\$1200.5 \times 10^{3}"),
        ("3 hundred thousand", "3 hundred thousand"),
        ("3 dozen", "3 dozen"),
        ("3 squared", "3 squared"),
        (r"\frac65", r"\frac{6}{5}"),
        (r"0.1\overline{6}", r"\frac{15}{90}"),
        (r"-.\bar3", r"-\frac{3}{9}"),
        (r"12.\overline{03}", r"\frac{1191}{99}"),
        (r"\overline{12}", r"\overline{12}"),
        (r"\left\langle 1, 2 \right\rangle", r"\left( 1, 2 \right)"),
        (r"\varnothing", r"\emptyset"),
        (r"\Bigl(1,2\Bigr)", "(1,2)"),
        (r"\bigcup A", r"\bigcup A"),
        ("-2 3/4", r"-\frac{11}{4}"),
        ("(1 1/2, 3)", r"(1\frac{1}{2}, 3)"),
        ("1 000/3", "1 000/3"),
        ("12 345/7", "12 345/7"),
        (r"1 \frac12", r"\frac{3}{2}"),
        (r"66\frac{2}{3}\%", r"\frac{200}{3}\%"),
        (r"2\frac{3}{2}", r"2\frac{3}{2}"),
        (r"\dfrac9{19}", r"\dfrac{9}{19}"),
        ("3 million", r"3 \times 10^{6}"),
        ("2 pi", r"2 \pi"),
        ("3pi/4", r"3\pi /4"),
        ("x**2 + sin(x)", r"x^2 + \sin (x)"),
        ("spin(x)", "spin(x)"),
        (r"42^{\circ}", "42"),
        (r"\( 42 \)", "42"),
        (r"m_{\max }", "m_{max}"),
        (r"7^\frac{1}{2}", r"7^{\frac{1}{2}}"),
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


def test_plain_fractions_are_exact() -> None:
    assert plain_fraction(r"-\frac{3}{6}") == plain_fraction("-1/2") == Fraction(-1, 2)
    assert plain_fraction("7") == 7
    assert plain_fraction("1/0") is None
    assert plain_fraction("0.5") is None


def test_values_are_split_at_the_top_level_only() -> None:
    assert values(r"1, (2,3) or \frac{4}{5}") == ["1", "(2,3)", r"\frac{4}{5}"]
    assert values(r"\{3, 1\}") == ["3", "1"]
    assert values(r"19, 46, \text{ and } 82") == ["19", "46", "82"]
    assert values("100,200") == ["100", "200"]


def test_words_are_what_a_text_says_and_one_letter_is_a_variable() -> None:
    assert words(r"\text{ Friday. }") == "friday"
    assert words(r"\text{(E)}") == words(r"\text{E}") == "e"
    assert words(r"\text{x}") is words(r"\text{e}") is None
    assert words("ab") is None


@pytest.mark.parametrize(
    "answer",
    ["1" * 2001, "{" * 81 + "}" * 81, "9^{9^{9}}", "9^9^9^9", "x^{y^{z^{w}}}", "9^{(9^9)}", "0.9^{999999999999}"]
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
