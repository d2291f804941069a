import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.reward.differ import elements, surely_differ


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [("", "number", (3,))]),
        ("(1, 2)", [("", "row", (1, 2))]),
        (r"\left( 3, \frac{1}{2}, -4 \right]", [("", "row", (3, 0.5, -4))]),
        (r"x \in (-\infty, 0]", [("x", "row", (-1e50, 0))]),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & \frac{1}{2} \end{pmatrix}", [("", "row", (1, 2, 3, 0.5))]),
        ("f(x) = 2", [("f(x)", "number", (2,))]),
        (r"-1 \frac{1}{2}", [("", "number", (-1.5,))]),
        (r"44\%", [("", "percent", (44,))]),
        (r"\frac{68}{3}\text{ pounds}", [("", "number", (68 / 3,))]),
        (r"x=1 \text{ or } x=2", [("x", "number", (1,)), ("x", "number", (2,))]),
        (r"\left\{1, (2,3)\right\}", [("", "number", (1,)), ("", "row", (2, 3))]),
        (r"(5,6) \cup [0,1) \cup [1,2]", [("", "row", (0, 2, 5, 6))]),
        (r"(-\infty,1) \cup (1,\infty)", [("", "row", (-1e50, 1, 1, 1e50))]),
        (r"(2,1) \cup \{1\} \cup (3,4)", [("", "row", (1, 1, 3, 4))]),
        (r"\{1 \pm 3, 5\}", [("", "number", (4,)), ("", "number", (-2,)), ("", "number", (5,))]),
        (r"x = \pm 3", [("x", "number", (3,)), ("x", "number", (-3,))]),
        (r"-\$0.50", [("", "number", (-0.5,))]),
        (r"x \geqslant \frac{1}{2}", [("x>=", "inequality", (0.5,))]),
        ("5 > x", [("x<", "inequality", (5,))]),
    ],
)
def test_answers_are_lists_of_elements(text: str, expected: list[tuple]) -> None:
    assert [element[:3] for element in elements(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(1,2",
        "(1,)",
        "1,234",
        "(1,234)",
        "x=1=1",
        r"5 \text{ million}",
        r"\pm 3 \pm 4",
        r"(1,2) \cup x",
        "1:0",
        "1<x<5",
        "x>y",
        "2x>5",
    ],
)
def test_whatever_may_be_meant_in_two_ways_has_no_elements(text: str) -> None:
    assert elements(text) == ()


@pytest.mark.parametrize(
    ("left", "right"),
    [("x+1", "1+x"), (r"\frac{1}{3}", "0.333333"), ("(x+1)^2", "x^2+2x+1"), ("(1,2)", "(1,2)"), (r"\sqrt{12}", r"2\sqrt{3}")]
    + [
        ("e", "2.718281828"),
        ("x=5", "5"),
        ("x=5", "5=x"),
        ("x=5", "2x=10"),
        ("y=2x+1", "2x-y+1=0"),
        (r"\frac{x^2}{16} - \frac{y^2}{9} = 1", "9x^2 - 16y^2 = 144"),
        ("xy=1", r"y=\frac{1}{x}"),
        (r"e^y = x", r"y = \ln x"),
        ("x^2+y^2=-1", "x^2+y^2=-2"),
        ("f(x)=x", "f(z)=z"),
        ("4x-5y=-50", "-50"),
        ("(1,2)", "2, 1"),
        ("1, 1", "1"),
        ("3,5", r"\frac{7}{2}"),
        (r"28\%", "28"),
        (r"28\%", "0.28"),
        (r"(-\infty,1) \cup [1,\infty)", r"(-\infty,2) \cup (0,\infty)"),
        (r"(0,1) \cup (1,2)", r"[0,1) \cup (1,2]"),
        (r"\pm 3", "3, -3"),
        (r"\cos 60^\circ", r"\frac{1}{2}"),
        (r"\cos 60^\circ", r"\cos 60"),
        (r"\frac{\log 2}{\log 3}", r"\frac{\ln 2}{\ln 3}"),
        (r"\log 100", "2"),
        ("1202_3", "47"),
        ("1202_3", "1202"),
        ("0.11_{2}", "0.75"),
        ("(2,251,252)", "2251252"),
        ("(2,251,252)", "(2, 251, 252)"),
        (r"\sin 3x", r"\sin(3x)"),
        (r"\sin 3x", r"x\sin(3)"),
        (r"\sin \theta \cos \theta", r"\frac{1}{2} \sin 2\theta"),
        (r"\left[\frac{7}{2}\right]", "3"),
        (r"\left[1+\frac{5}{2}\right]^{2}", r"\frac{49}{4}"),
        ("2I", "2i"),
        (r"y^{\prime}+y", "y' + y"),
        (r"\lambda_{\text{red}}", r"\lambda_{red}"),
        (r"\dot{x}_{0}+1", r"1+\dot x_0"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"\frac{1}{0}", r"\infty"),
        (r"\frac{1}{10^{-400}}", "1"),
        (r"\frac{1}{x-x+1-1}", "1"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
        (r"\frac{1}{2}\text{ hours}", "0.5"),
        ("sqrt(2)", r"\sqrt{2}"),
        ("x=1, y=2", "(1,2)"),
        ("x^2=4", "2, -2"),
        ("x^2=4", "[-2,2]"),
        ("x+1=x+1", r"(-\infty,\infty)"),
        ("2x=10", "5"),
        ("2x=10", "10"),
        ("f(x)=x+1", "f(t)=t+1"),
        ("x>5", r"(5,\infty)"),
        ("x>5", r"x \geq 5"),
        ("x>5", "5<x"),
        ("x>5", "x=6"),
        ("x>5", "2x>11"),
        ("f(t)=2t", "f-2t=0"),
        ("y(t)=2t", "y=2t"),
        (r"\angle A B C=90", "90"),
        (r"\angle A B C=90", r"\angle C B A=90"),
        (r"(3,331), (1,2)", r"3331, (1,2)"),
        ("x^23", "x^{23}"),
        ("6:2", "3:1"),
        ("3:1", "3"),
        ("x^23", "3x^2"),
        ("x^23 + 1", "x^{23} + 1"),
        (r"\text{C, F}", "F, C"),
        (r"\text{two } \pi", r"2\pi"),
        (r"\text{i}", "2i"),
        (r"\text{red}", r"x_1"),
    ],
)
def test_equal_values_and_unread_texts_prove_nothing(left: str, right: str) -> None:
    assert not surely_differ(left, right) and not surely_differ(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("x+1", "x+2"),
        (r"(-\infty,1) \cup (1,\infty)", r"(-\infty,2) \cup (0,\infty)"),
        (r"(-\infty,1) \cup (1,\infty)", r"(-\infty,2) \cup (2,\infty)"),
        (r"(0,1) \cup \{3\}", r"(0,1) \cup \{4\}"),
        (r"1 \pm \sqrt{5}", r"1 \pm \sqrt{6}"),
        (r"\cos 60^\circ", r"\cos 61^\circ"),
        (r"\frac{\log 2}{\log 3}", r"\frac{\log 2}{\log 5}"),
        ("1202_3", "48"),
        ("(n-2) 2^{n}", "(n-3) 2^{n}"),
        ("-221_3", "222"),
        ("(2,251,252)", "(2,261,252)"),
        (r"\sin 3x", r"\sin 2x"),
        (r"\left[e^{x}-1\right] d^{2}", r"\left[e^{x}-2\right] d^{2}"),
        ("I(0)", "I(3)"),
        (r"y^{\prime}+r y=0", r"y^{\prime}+r y=2"),
        (r"x_{0}+\dot{x}_{0}", r"x_{0}+\dot{x}_{1}"),
        (r"-\frac{1}{0}", r"-\frac{1}{2}"),
        (r"(\frac{1}{0}, 2)", r"(\frac{1}{3}, 2)"),
        (r"-\$0.50", r"-\$0.49"),
        ("x", "y"),
        ("[1,2)", "[1,3)"),
        ("[1,2]", "(1,3)"),
        ("x=1", "x=2"),
        ("x=5", "4"),
        (r"(-\infty,1)", r"(\infty,1)"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "3"),
        ("(1,2)", "(1,2,3)"),
        ("1, 2", "1, 3"),
        ("1, 2, 3", "1, 2"),
        ("3", "1, 3"),
        ("(1,2), (3,4)", "(1,2), (4,3)"),
        (r"\pi", "3.14"),
        ("x^2", "x^{3}"),
        ("i", "1"),
        (r"28\%", "29"),
        (r"28\%", r"29\%"),
        (r"\alpha", "x"),
        (r"C_{1} e^{t}", r"C_{2} e^{t}"),
        (r"\sin(2t)", r"\cos(2t)"),
        ("x=5", "y=6"),
        ("x=5", "2x=11"),
        ("11x + 6y + 5z + 86 = 0", "14x + 6y + 5z + 86 = 0"),
        (r"\frac{x^2}{16} - \frac{y^2}{9} = 1", r"\frac{x^2}{16} - \frac{y^3}{9} = 1"),
        (
            r"\frac{d^{2} v_{o}}{d t^{2}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}",
            r"\frac{d^{2} v_{o}}{d t^{3}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}",
        ),
        (r"(-\infty,-8) \cup (8,\infty)", r"(-\infty,-7) \cup (8,\infty)"),
        ("f(x)=x, f(x)=-x", "f(x)=x, f(x)=2-x"),
        ("x^2=4", "2, -3"),
        ("x^2=4", "(-2,3)"),
        ("2x=10", "4"),
        ("x+2y=3", "(1,2)"),
        ("x>5", r"6 < x"),
        (r"k \geqslant 2", r"k \ge 3"),
        ("x>5", "5"),
        (r"m \frac{d v}{d t}+b v=f", r"\left( \frac{3}{2}, -13 \right)"),
        ("f(n)=n, g(n)=1", "f(n)=n"),
        ("f(n)=2n+1007", "11x + 6y + 5z + 86 = 0"),
        (r"\angle A B C=90", "80"),
        (r"\angle A B C=90", r"\angle A B C=80"),
        (r"\angle A_{1} B C=90", r"\angle A_{2} B C=80"),
        ("(1,1006), (3,331)", "(1,1006), (3,332)"),
        ("(3,331)", "(3,332)"),
        (r"(2,13) \cup (13,102)", r"(2,12) \cup (13,102)"),
        ("18x^28", "18x^8"),
        ("3:1", "1:3"),
        ("1:1", r"8 \sqrt{2}"),
        ("x^10+x^12", "x^10+x^14"),
        (r"\text{undefined}", r"\frac{24}{5}"),
        (r"\text{C, F, H}", r"\frac{1}{2n+2}"),
    ],
)
def test_different_values_prove_a_difference(left: str, right: str) -> None:
    assert surely_differ(left, right) and surely_differ(right, left)


NUMBERS = st.lists(st.integers(-9, 9), min_size=1, max_size=5)


@given(NUMBERS, st.randoms())
def test_lists_differ_exactly_where_their_sets_do(numbers: list[int], random) -> None:
    other = list(numbers)
    random.shuffle(other)
    assert not surely_differ(", ".join(map(str, numbers)), ", ".join(map(str, other)))
    other[0] = 10
    assert surely_differ(", ".join(map(str, numbers)), ", ".join(map(str, other)))
