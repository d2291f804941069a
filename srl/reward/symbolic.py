"""Comparison by algebra, with math-verify. It can hang, explode or die: `srl.reward.worker` runs it in a process of its own.

Import this module before sympy: with gmpy2 its integers ignore every alarm.
"""

import os
import re

os.environ.setdefault("SYMPY_GROUND_TYPES", "python")
os.environ.setdefault("MPMATH_NOGMPY", "1")

from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import Basic, E, Equality, Expr, Float, I, MatrixBase, N, Rational, S, Symbol, UnevaluatedExpr
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from srl.reward.refusals import too_explosive
from srl.reward.spelling import both_signs, values
from srl.trajectory import Outcome

EXACT_TOLERANCE = 1e-12  # relative, between expressions without decimals
DECIMAL_TOLERANCE = 1e-4  # relative, between numbers that math-verify calls equal; it looks at six decimals only
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37)  # numerators of the point at which expressions are compared: positive, nothing special

# A last letter that belongs to what stands before it; math-verify takes "a + b + c" for "a + b +" and a unit.
LAST_LETTER = re.compile(
    r"((?:[-+*/=]|\\cdot|\\times|\\(?:sin|cos|tan|cot|sec|csc|log|ln)(?:\s*\^\s*\{?\d+\}?)?)\s*) ([A-Za-z])$"
)

Readings = tuple[Any, ...]  # what math-verify makes of a text: an expression if it can, and a string


class InvalidGold(ValueError):
    """A gold answer that nothing but its own spelling could equal."""


def compare(answer: str, gold: str, error: float = 0.0) -> Outcome:
    """CORRECT, INCORRECT or UNPARSABLE for a normalised answer and gold. Raises InvalidGold; has no time limit of its own."""
    wanted = gold_values(gold)
    found = each_value(answer)
    if len(found) == len(wanted) > 1:
        return compare_lists(found, wanted, error)
    readings, target = read(answer), read_gold_value(gold) if len(wanted) > 1 else wanted[0]
    if expression(target) is None:
        return Outcome.INCORRECT
    return same(readings, target, error)


def compare_lists(found: list[str], wanted: list[Readings], error: float) -> Outcome:
    """Each value of the gold needs a value of its own in the answer, in any order."""
    waiting = [read(value) for value in found]
    for target in wanted:
        match = next((index for index, value in enumerate(waiting) if same(value, target, error) is Outcome.CORRECT), None)
        if match is None:
            return Outcome.INCORRECT if all(expression(value) is not None for value in waiting) else Outcome.UNPARSABLE
        del waiting[match]
    return Outcome.CORRECT


def same(readings: Readings, target: Readings, error: float) -> Outcome:
    gold, answer = expression(target), expression(readings)
    if not error and clearly_differ(gold, answer):
        return Outcome.INCORRECT
    equal = verify(list(target), list(readings), timeout_seconds=None, raise_on_error=True)
    if error and is_number(gold) and is_number(answer):
        equal = bool(size(gold - answer) <= 1.01 * error)
    elif equal and differ_after_all(gold, answer):
        equal = False
    if equal:
        return Outcome.CORRECT
    return Outcome.UNPARSABLE if answer is None else Outcome.INCORRECT


def each_value(text: str) -> list[str]:
    r"""Of a list, and both of one with a sign of two, of which math-verify reads none in a fraction."""
    return [signed for value in values(text) for signed in both_signs(value)]


@lru_cache(maxsize=4096)
def gold_values(gold: str) -> tuple[Readings, ...]:
    """The readings of each value of a normalised gold. Raises InvalidGold unless each has an expression."""
    if too_explosive(gold):
        raise InvalidGold(f"gold {gold[:200]!r} is too large to evaluate")
    readings = tuple(read_gold_value(value) for value in each_value(gold))
    if any(expression(reading) is None for reading in readings):
        whole = read_gold_value(gold)
        if expression(whole) is None:
            raise InvalidGold(f"gold {gold!r} does not parse")
        return (whole,)
    return readings


@lru_cache(maxsize=4096)
def read_gold_value(value: str) -> Readings:
    try:
        return read(value)
    except Exception as error:
        raise InvalidGold(f"gold {value!r} does not parse: {type(error).__name__}") from error


def read(text: str) -> Readings:
    """math-verify keeps only the first number of bare LaTeX, so both sides go into a box."""
    text = LAST_LETTER.sub(r"\1 {\2}", text)
    return tuple(map(with_imaginary_unit, parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)))


def with_imaginary_unit(reading: Any) -> Any:
    """math-verify takes i for a symbol, and all symbols of 2 i x, but not those of 2ix, for others than it knows elsewhere."""
    symbols = [symbol for symbol in getattr(reading, "free_symbols", ()) if symbol.name == "i" or symbol.is_real is False]
    if not symbols:
        return reading
    real = {symbol: Symbol(symbol.name, real=True) for symbol in symbols}
    complex_ = real | {symbol: I for symbol in symbols if symbol.name == "i"}
    try:
        if isinstance(reading, Equality):
            return Equality(reading.lhs.subs(complex_), reading.rhs.subs(complex_), evaluate=False)
        if not reading.has(Relational):
            return reading.subs(complex_)
    except (TypeError, ValueError):  # an end of an interval is real
        pass
    return reading.subs(real)


def expression(readings: Readings) -> Any | None:
    """The reading that is an expression; the others are strings."""
    return next((reading for reading in readings if isinstance(reading, Basic | MatrixBase)), None)


def clearly_differ(gold: Any, answer: Any) -> bool:
    """Whether two expressions have values far apart at one point of their variables: sympy's simplify would take its time."""
    sides = [gold, answer]
    if sum(isinstance(side, Equality) for side in sides) == 1:  # math-verify compares its right side, or nothing
        sides = [side.rhs if isinstance(side, Equality) else side for side in sides]
    if not all(isinstance(side, Expr) and not side.has(UnevaluatedExpr, AppliedUndef) for side in sides):
        return False
    # The symbol abc is the product of a, b and c to math-verify, and e Euler's number.
    gold, answer = sides
    if gold.free_symbols != answer.free_symbols and any(isinstance(side, Symbol) or side == E for side in sides):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: Rational(PRIMES[index % len(PRIMES)], 7 + index) for index, symbol in enumerate(symbols)}
    left, right = (N(side.subs(point).doit(), 20) for side in sides)
    if not (left.is_Number or left.is_complex) or not (right.is_Number or right.is_complex):
        return False
    distance, scale = N(abs(left - right), 20), N(abs(left) + abs(right) + 1, 20)
    return bool(distance.is_finite and scale.is_finite and distance > 1e-3 * scale)


def differ_after_all(gold: Any, answer: Any) -> bool:
    """Two kinds of equality that math-verify grants and nobody should: 10^-7 = 2 * 10^-7, and the box `0 = 42` for 42."""
    if isinstance(answer, Equality) and not isinstance(gold, Equality):
        if answer.lhs.is_number and answer.rhs.is_number and far_apart(answer.lhs, answer.rhs):
            return True
        answer = answer.rhs
    if not (is_number(gold) and is_number(answer)):
        return False
    # 28, 0.28 and 28 % are one answer to math-verify, which keeps the 1/100 of a percent unevaluated.
    if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):
        return False
    return far_apart(gold, answer)


def is_number(reading: Any) -> bool:
    return bool(getattr(reading, "is_number", False))


def far_apart(left: Any, right: Any) -> bool:
    if left.has(Float) or right.has(Float):
        return bool(size(left - right) > DECIMAL_TOLERANCE * max(size(left), size(right)))
    left, right = left.doit(), right.doit()
    if left.is_Rational and right.is_Rational:
        return left != right
    return bool(size(left - right) > EXACT_TOLERANCE * max(size(left), size(right)))


def size(number: Any) -> Any:
    """Absolute value, infinite where sympy finds none."""
    value = abs(N(number, 30))
    return value if value.is_Number and value.is_finite else S.Infinity
