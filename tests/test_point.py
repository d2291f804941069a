import math

import pytest

from srl.reward.point import Unread, value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("-.5", -0.5),
        (r"\frac{14}{3}", 14 / 3),
        (r"3\sqrt{13}", 3 * 13**0.5),
        (r"\sqrt[3]{8}", 2),
        (r"-\frac{1}{2} + 2\cdot 3", 5.5),
        ("2^{10}", 1024),
        ("2^3", 8),
        ("-3^2", -9),
        ("(1+2)(3-1)", 6),
        ("6-5i", 6 - 5j),
        ("(1+2) / 4", 0.75),
        ("8/2/2", 2),
        ("i^2", -1),
        (r"\frac\pi2", math.pi / 2),
        (r"\frac{\sqrt7}4", 7**0.5 / 4),
        (r"\cfrac{1}{4}", 0.25),
        (r"\frac{2}{3} \frac{3}{4}", 0.5),
        ("3! + 0!", 7),
        (r"\binom{5}{2}", 10),
        (r"\sin^{2}(2) + \cos^{2}(2)", 1),
        (r"2 \ln{e}", 2),
        (r"\tan \frac{\pi}{4} + 1", 2),
        (r"\exp(2\pi i)", 1),
        (r"\lfloor\frac{7}{2}\rfloor n", 3 * value("n")),
        (r"2 - \lceil \sqrt{5} \rceil", -1),
        (r"\log_{2} 8 + \log _3(9)", 5),
    ],
)
def test_expressions_have_their_values(text: str, expected: complex) -> None:
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["", "1/2x", r"1\frac{1}{2}", "2 3", "x^23", "2^3^4", r"\text{a}", "2x=1", "5%", "(1", "1)", "{1", r"\sqrt[3]{-8}"]
    + ["9^{9^{9}}", "1/0", "1,2", "(1,2)", "|x|", "3!!", "1e400", "()", r"2^\frac{1}{2}", r"\sqrt17", "x_10", "E_1", r"\frac"]
    + [r"\sin x y", r"\sin x^2", r"\sin(x)^2", r"\sin^{-1}(x)", r"\log x", "sqrt(2)", "2pi", "5 cm", "alpha", "(-1)!", "I"]
    + [r"\Gamma(d)", r"\lfloor 3 \rfloor", r"\lceil \frac{7}{2} \rfloor", r"\lfloor i \rfloor", r"\log_1 2", r"\log_x 2"],
)
def test_whatever_is_ambiguous_or_unknown_is_not_read(text: str) -> None:
    with pytest.raises((Unread, ArithmeticError, ValueError)):
        value(text)


@pytest.mark.parametrize(
    ("left", "right"),
    [(r"x_{0}", "x_0"), (r"\varphi", r"\phi"), ("X", "x"), ("2x", "x*2"), (r"\omega_{n} t", r"t \cdot \omega_n")],
)
def test_spellings_of_one_symbol_have_one_value(left: str, right: str) -> None:
    assert value(left) == value(right)


def test_symbols_have_different_values() -> None:
    symbols = [*"abcdefghjklmnopqrstuvwxyz", *(rf"\{name}" for name in ("alpha", "beta", "theta", "omega")), "x_1", "x_2"]
    assert len({round(value(symbol).real, 4) for symbol in symbols}) == len(symbols)
