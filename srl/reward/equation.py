"""Whether two equations surely have different solutions, from one solution of one of them."""

from collections.abc import Sequence

from srl.reward.point import Unread, apart, symbols, value

START = (1.7, 2.3)
STEPS = 60
SOLVED = 1e-13  # relative
NEARLY = 1e-3  # relative

Equation = tuple[str, str]  # both sides


def solutions_differ(equation: Equation, other: Equation) -> bool:
    """Whether some solution of the first does not solve the other; False where none is found.

    All symbols but one have their fixed values; the one is solved for, among real numbers, on which logarithms have one branch.
    """
    own, others = symbols(" ".join(equation)), symbols(" ".join(other))
    for name in sorted(own, key=lambda name: (name not in others, name)):
        try:
            solution = {name: complex(solve(equation, name))}
            left, right = (value(side, solution) for side in other)
        except (Unread, ArithmeticError, ValueError):
            continue
        return apart(left, right)
    return False


def says_more(equation: Equation, numbers: Sequence[complex]) -> bool:
    """Whether an equation surely says something else than these numbers, which neither solve it nor are a side of it."""
    try:
        left, right = map(value, equation)
        names = symbols(" ".join(equation))
        if not apart(left, right):  # it may hold for all numbers
            return False
        if len(numbers) == 1 and not (apart(numbers[0], left) and apart(numbers[0], right)):
            return False
        return len(names) > 1 or not all(solves(number, equation, names) for number in numbers)
    except (Unread, ArithmeticError, ValueError):
        return False


def solves(number: complex, equation: Equation, names: set[str]) -> bool:
    """As far as one can tell: a number that nearly does may do so exactly."""
    left, right = (value(side, dict.fromkeys(names, number)) for side in equation)
    return abs(left - right) < NEARLY * (1 + abs(left) + abs(right))


def solve(equation: Equation, name: str) -> float:
    """Raises Unread if the secant method finds no real solution in this symbol."""
    before, now = START
    value_before = difference(equation, name, before)[0]
    for _ in range(STEPS):
        value_now, scale = difference(equation, name, now)
        if abs(value_now) <= SOLVED * scale:
            return now
        if value_now == value_before:
            raise Unread
        before, now, value_before = now, now - value_now * (now - before) / (value_now - value_before), value_now
    raise Unread


def difference(equation: Equation, name: str, number: float) -> tuple[float, float]:
    """Left minus right side, which have to be real, and how large they are."""
    left, right = (value(side, {name: complex(number)}) for side in equation)
    if abs(left.imag) + abs(right.imag) > SOLVED * (abs(left) + abs(right)):
        raise Unread
    return left.real - right.real, 1 + abs(left) + abs(right)
