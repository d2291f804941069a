"""Rule-based grading of one answer. Every comparison that needs algebra is math-verify's, under its alarm.

Import this module before sympy: with gmpy2 its integers ignore the alarm.
"""

import os

os.environ.setdefault("SYMPY_GROUND_TYPES", "python")
os.environ.setdefault("MPMATH_NOGMPY", "1")

import threading
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from math_verify.utils import timeout
from sympy import Basic, Equality, MatrixBase, N, S, UnevaluatedExpr

from srl.reward.answer import is_integer, normalise, plain_number, too_explosive
from srl.trajectory import Outcome

RELATIVE_TOLERANCE = 1e-9  # between numbers that are written out, at least one of them with a fraction or exponent
EXPRESSION_TOLERANCE = 1e-4  # relative, between numbers that math-verify calls equal; it looks at six decimals only


def grade(answer: str | None, gold: str, timeout_s: int = 5) -> Outcome:
    """Compare a model's answer (the content of its box) with the gold answer.

    `timeout_s` limits each parse and each comparison, in whole seconds. Answers that would explode in algebra are
    UNPARSABLE unless spelled like the gold. Raises ValueError if the gold does not parse and RuntimeError off the main
    thread, where the alarm cannot work.
    """
    require_alarm(timeout_s)
    left, right = normalise(answer or ""), normalise(gold)
    if not right:
        raise ValueError(f"gold {gold!r} is empty")
    if not left:
        return Outcome.NO_ANSWER
    if left == right:
        return Outcome.CORRECT
    number, gold_number = plain_number(left), plain_number(right)
    if number is not None and gold_number is not None:
        tolerance = 0 if is_integer(left) and is_integer(right) else RELATIVE_TOLERANCE * max(abs(number), abs(gold_number))
        return Outcome.CORRECT if abs(number - gold_number) <= tolerance else Outcome.INCORRECT
    if too_explosive(left):
        return Outcome.UNPARSABLE
    return compare(left, parse_gold(right, timeout_s), timeout_s)


def check_gold(gold: str, timeout_s: int = 5) -> None:
    """Raise ValueError naming a gold answer that nothing but its own spelling could equal; RuntimeError as `grade`."""
    require_alarm(timeout_s)
    right = normalise(gold)
    if not right:
        raise ValueError(f"gold {gold!r} is empty")
    if plain_number(right) is None:
        parse_gold(right, timeout_s)


def require_alarm(timeout_s: int) -> None:
    thread = threading.current_thread()
    if thread is not threading.main_thread():
        raise RuntimeError(f"grading needs the main thread of its process, for math-verify's alarm; found thread {thread.name!r}")
    # math-verify swallows the TypeError of signal.alarm(0.5) and finds every answer empty.
    if not isinstance(timeout_s, int) or timeout_s < 1:
        raise ValueError(f"timeout_s={timeout_s!r}: whole seconds, 1 or more")


@lru_cache(maxsize=4096)
def parse_gold(gold: str, timeout_s: int) -> tuple[Any, ...]:
    """math-verify's readings of a normalised gold, at least one of them an expression; ValueError otherwise."""
    if too_explosive(gold):
        raise ValueError(f"gold {gold[:200]!r} is too large to evaluate")
    try:
        readings = read(gold, timeout_s)
    except TimeoutException:
        raise ValueError(f"gold {gold!r} does not parse within {timeout_s} s") from None
    except Exception as error:
        raise ValueError(f"gold {gold!r} does not parse: {type(error).__name__}") from error
    if expression(readings) is None:
        raise ValueError(f"gold {gold!r} does not parse")
    return readings


def compare(answer: str, gold: tuple[Any, ...], timeout_s: int) -> Outcome:
    try:
        readings = read(answer, timeout_s)
        equal = verify(list(gold), list(readings), timeout_seconds=timeout_s, raise_on_error=True)
        equal = equal and not timeout(timeout_s)(differ_after_all)(expression(gold), expression(readings))
    except TimeoutException:
        return Outcome.TIMEOUT
    except Exception:
        # Whatever sympy raises on text that a model wrote says that the answer cannot be read; the gold was read before.
        return Outcome.UNPARSABLE
    if equal:
        return Outcome.CORRECT
    return Outcome.UNPARSABLE if expression(readings) is None else Outcome.INCORRECT


def read(text: str, timeout_s: int) -> tuple[Any, ...]:
    """math-verify keeps only the first number of bare LaTeX, so both sides go into a box."""
    return tuple(parse(f"\\boxed{{{text}}}", parsing_timeout=timeout_s, raise_on_error=True))


def expression(readings: tuple[Any, ...]) -> Any | None:
    """The reading that is an expression; the others are strings."""
    return next((reading for reading in readings if isinstance(reading, Basic | MatrixBase)), None)


def differ_after_all(gold: Any, answer: Any) -> bool:
    """Two kinds of equality that math-verify grants and nobody should: 10^-7 = 2 * 10^-7, and the box `0 = 42` for 42."""
    if isinstance(answer, Equality) and not isinstance(gold, Equality):
        if answer.lhs.is_number and answer.rhs.is_number and far_apart(answer.lhs, answer.rhs):
            return True
        answer = answer.rhs
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    # 28, 0.28 and 28 % are one answer to math-verify, which keeps the 1/100 of a percent unevaluated.
    if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):
        return False
    return far_apart(gold, answer)


def far_apart(left: Any, right: Any) -> bool:
    return bool(size(left - right) > EXPRESSION_TOLERANCE * max(size(left), size(right)))


def size(number: Any) -> Any:
    """Absolute value, infinite where sympy finds none."""
    value = abs(N(number, 30))
    return value if value.is_Number and value.is_finite else S.Infinity
