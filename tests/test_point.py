import pytest

from srl.reward.point import Unread, read, values_differ


@pytest.mark.parametrize(
    ("text", "value"),
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
        (r"\left(1+2\right) / 4", 0.75),
        ("8/2/2", 2),
        ("i^2", -1),
    ],
)
def test_expressions_have_their_values(text: str, value: complex) -> None:
    shape, [found] = read(text)
    assert shape == "" and found == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "shape", "values"),
    [
        ("(1, 2)", "(,)", [1, 2]),
        (r"\left( 3, \frac{1}{2}, -4 \right]", "(,,]", [3, 0.5, -4]),
        (r"(-\infty, 0]", "(,]", [-1e50, 0]),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & \frac{1}{2} \end{pmatrix}", "matrix2,2", [1, 2, 3, 0.5]),
        ("y = -2", "y=", [-2]),
        ("f(x) = 2", "f(x)=", [2]),
    ],
)
def test_answers_of_several_values_have_a_shape(text: str, shape: str, values: list[float]) -> None:
    assert read(text) == (shape, values)


@pytest.mark.parametrize(
    "text",
    ["", "1/2x", r"1\frac{1}{2}", "2 3", "x^23", "2^3^4", r"\sin x", r"\text{a}", "2x=1", "5%", "(1", "1)", "{1", r"\sqrt[3]{-8}"]
    + ["9^{9^{9}}", "1/0", "1,2", "x=1=1", "(1,2", "x_1", r"\frac12", "|x|", "3!", "1e400", "()", "(1,)"],
)
def test_whatever_is_ambiguous_or_unknown_is_not_read(text: str) -> None:
    with pytest.raises((Unread, ArithmeticError)):
        read(text)


@pytest.mark.parametrize(
    ("left", "right"),
    [("x+1", "1+x"), ("2x", "x*2"), ("X", "x"), (r"\frac{1}{3}", "0.333333"), ("(x+1)^2", "x^2+2x+1"), ("(1,2)", "(1,2)")]
    + [
        (r"\sqrt{12}", r"2\sqrt{3}"),
        ("e", "2.718281828"),
        ("x=5", "4"),
        ("[1,2]", "(1,3)"),
        ("x=5", "y=6"),
        ("(1,2)", "3"),
        ("(1,2)", "(1,2,3)"),
    ],
)
def test_equal_values_and_unread_texts_prove_nothing(left: str, right: str) -> None:
    assert not values_differ(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("x+1", "x+2"),
        ("x", "y"),
        ("[1,2)", "[1,3)"),
        ("x=1", "x=2"),
        (r"(-\infty,1)", r"(\infty,1)"),
        ("(1,2)", "(2,1)"),
        (r"\pi", "3.14"),
        ("x^2", "x^{3}"),
        ("i", "1"),
    ],
)
def test_different_values_prove_a_difference(left: str, right: str) -> None:
    assert values_differ(left, right)
