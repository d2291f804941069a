import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.reward.differ import elements, surely_differ
from tests.pairs import pairs


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
        r"5 \text{ dozen}",
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
    pairs(r"""
    x+1                                  | 1+x
    \frac{1}{3}                          | 0.333333
    (x+1)^2                              | x^2+2x+1
    (1,2)                                | (1,2)
    \sqrt{12}                            | 2\sqrt{3}
    e                                    | 2.718281828
    x=5                                  | 5
    x=5                                  | 5=x
    x=5                                  | 2x=10
    y=2x+1                               | 2x-y+1=0
    \frac{x^2}{16} - \frac{y^2}{9} = 1   | 9x^2 - 16y^2 = 144
    xy=1                                 | y=\frac{1}{x}
    e^y = x                              | y = \ln x
    x^2+y^2=-1                           | x^2+y^2=-2
    f(x)=x                               | f(z)=z
    4x-5y=-50                            | -50
    (1,2)                                | 2, 1
    1, 1                                 | 1
    3,5                                  | \frac{7}{2}
    28\%                                 | 28
    28\%                                 | 0.28
    (-\infty,1) \cup [1,\infty)          | (-\infty,2) \cup (0,\infty)
    (0,1) \cup (1,2)                     | [0,1) \cup (1,2]
    \pm 3                                | 3, -3
    \cos 60^\circ                        | \frac{1}{2}
    \cos 60^\circ                        | \cos 60
    \frac{\log 2}{\log 3}                | \frac{\ln 2}{\ln 3}
    \log 100                             | 2
    1202_3                               | 47
    1202_3                               | 1202
    0.11_{2}                             | 0.75
    (2,251,252)                          | 2251252
    (2,251,252)                          | (2, 251, 252)
    \sin 3x                              | \sin(3x)
    \sin 3x                              | x\sin(3)
    \sin \theta \cos \theta              | \frac{1}{2} \sin 2\theta
    \left[\frac{7}{2}\right]             | 3
    \left[1+\frac{5}{2}\right]^{2}       | \frac{49}{4}
    2I                                   | 2i
    y^{\prime}+y                         | y' + y
    \lambda_{\text{red}}                 | \lambda_{red}
    \dot{x}_{0}+1                        | 1+\dot x_0
    \frac{1}{0}                          | \frac{2}{0}
    \frac{1}{0}                          | \infty
    \frac{10^{-400}}{10^{-400}}          | 1
    \frac{1}{3 \times 10^{9}}            | 3.3333 \times 10^{-10}
    x>5                                  | (5, \infty)
    \sin \theta(t)                       | \sin(\theta(t))
    \frac{1}{x-x+1-1}                    | 1
    \begin{pmatrix} 1 \\ 2 \end{pmatrix} | (1,2)
    \frac{1}{2}\text{ hours}             | 0.5
    sqrt(2)                              | \sqrt{2}
    x=1, y=2                             | (1,2)
    x^2=4                                | 2, -2
    x^2=4                                | [-2,2]
    x+1=x+1                              | (-\infty,\infty)
    2x=10                                | 5
    2x=10                                | 10
    f(x)=x+1                             | f(t)=t+1
    x>5                                  | (5,\infty)
    x<-1 \text{ or } x>1                 | (-\infty,-1) \cup (1,\infty)
    x>5                                  | x \geq 5
    x>5                                  | 5<x
    x>5                                  | 2x>11
    1,234                                | 1.234
    f(t)=2t                              | f-2t=0
    y(t)=2t                              | y=2t
    \angle A B C=90                      | 90
    \angle A B C=90                      | \angle C B A=90
    (3,331), (1,2)                       | 3331, (1,2)
    x^23                                 | x^{23}
    6:2                                  | 3:1
    3:1                                  | 3
    x^23                                 | 3x^2
    x^23 + 1                             | x^{23} + 1
    \text{C, F}                          | F, C
    \text{two } \pi                      | 2\pi
    \text{i}                             | 2i
    \text{red}                           | x_1
    """),
)
def test_equal_values_and_unread_texts_prove_nothing(left: str, right: str) -> None:
    assert not surely_differ(left, right) and not surely_differ(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    pairs(r"""
    x+1                                | x+2
    (-\infty,1) \cup (1,\infty)        | (-\infty,2) \cup (0,\infty)
    (-\infty,1) \cup (1,\infty)        | (-\infty,2) \cup (2,\infty)
    (0,1) \cup \{3\}                   | (0,1) \cup \{4\}
    1 \pm \sqrt{5}                     | 1 \pm \sqrt{6}
    \cos 60^\circ                      | \cos 61^\circ
    \frac{\log 2}{\log 3}              | \frac{\log 2}{\log 5}
    1202_3                             | 48
    x>5                                | x=6
    x>5                                | (4,6)
    x>5                                | (4,6,7)
    x>5                                | y=2x
    SRMC=LRMC                          | k=1
    3,5                                | 7, 8, 9
    2^{1009}                           | 2^{1010}
    2^{1009}                           | \sqrt{2}
    \frac{1}{2004!}                    | \frac{1}{2007!}
    1 \times 13^{-8}                   | 1 \times 10^{-8}
    \sin \theta(t)                     | \cos \theta(t)
    (n-2) 2^{n}                        | (n-3) 2^{n}
    -221_3                             | 222
    (2,251,252)                        | (2,261,252)
    \sin 3x                            | \sin 2x
    \left[e^{x}-1\right] d^{2}         | \left[e^{x}-2\right] d^{2}
    I(0)                               | I(3)
    y^{\prime}+r y=0                   | y^{\prime}+r y=2
    x_{0}+\dot{x}_{0}                  | x_{0}+\dot{x}_{1}
    -\frac{1}{0}                       | -\frac{1}{2}
    (\frac{1}{0}, 2)                   | (\frac{1}{3}, 2)
    -\$0.50                            | -\$0.49
    x                                  | y
    [1,2)                              | [1,3)
    [1,2]                              | (1,3)
    x=1                                | x=2
    x=5                                | 4
    (-\infty,1)                        | (\infty,1)
    (1,2)                              | (2,1)
    (1,2)                              | 3
    (1,2)                              | (1,2,3)
    1, 2                               | 1, 3
    1, 2, 3                            | 1, 2
    3                                  | 1, 3
    (1,2), (3,4)                       | (1,2), (4,3)
    \pi                                | 3.14
    x^2                                | x^{3}
    i                                  | 1
    28\%                               | 29
    28\%                               | 29\%
    \alpha                             | x
    C_{1} e^{t}                        | C_{2} e^{t}
    \sin(2t)                           | \cos(2t)
    x=5                                | y=6
    x=5                                | 2x=11
    11x + 6y + 5z + 86 = 0             | 14x + 6y + 5z + 86 = 0
    \frac{x^2}{16} - \frac{y^2}{9} = 1 | \frac{x^2}{16} - \frac{y^3}{9} = 1
    (-\infty,-8) \cup (8,\infty)       | (-\infty,-7) \cup (8,\infty)
    f(x)=x, f(x)=-x                    | f(x)=x, f(x)=2-x
    x^2=4                              | 2, -3
    x^2=4                              | (-2,3)
    2x=10                              | 4
    x+2y=3                             | (1,2)
    x>5                                | 6 < x
    k \geqslant 2                      | k \ge 3
    x>5                                | 5
    m \frac{d v}{d t}+b v=f            | \left( \frac{3}{2}, -13 \right)
    f(n)=n, g(n)=1                     | f(n)=n
    f(n)=2n+1007                       | 11x + 6y + 5z + 86 = 0
    \angle A B C=90                    | 80
    \angle A B C=90                    | \angle A B C=80
    \angle A_{1} B C=90                | \angle A_{2} B C=80
    (1,1006), (3,331)                  | (1,1006), (3,332)
    (3,331)                            | (3,332)
    (2,13) \cup (13,102)               | (2,12) \cup (13,102)
    18x^28                             | 18x^8
    3:1                                | 1:3
    1:1                                | 8 \sqrt{2}
    x^10+x^12                          | x^10+x^14
    \text{undefined}                   | \frac{24}{5}
    \text{C, F, H}                     | \frac{1}{2n+2}
    """)
    + [
        (
            r"\frac{d^{2} v_{o}}{d t^{2}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}",
            r"\frac{d^{2} v_{o}}{d t^{3}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}",
        )
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
