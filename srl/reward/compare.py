"""What can be decided about an answer without algebra. Most answers are numbers, and most answers of a group repeat."""

import re
from fractions import Fraction

from srl.reward.claims import APPROXIMATED, contradicts_itself, say_otherwise, without_approximation
from srl.reward.differ import surely_differ
from srl.reward.gold import Gold, split_unit, unit_name, without_measure
from srl.reward.interval import INTERVAL, as_interval
from srl.reward.point import SYMBOL, symbol_name
from srl.reward.refusals import LONGEST_ANSWER, too_explosive
from srl.reward.spelling import (
    ELLIPSIS,
    bare_words,
    compact,
    decimal_comma,
    is_integer,
    normalise,
    plain_fraction,
    plain_number,
    values,
    words,
)
from srl.trajectory import Outcome

BRACKETED = re.compile(r"(?:\\left)?\s*(?:[(\[]|\\\{|\\begin)")
BASED = re.compile(r"(-?)0*([\w.]+)_\{?(\d+)\}?")  # 2516_8
ASSIGNED = re.compile(rf"(?![eEiI])({SYMBOL}) ?= ?([^=]+)")  # x = 5
SHORTHAND = re.compile(r"\\[pm][pm](?![a-z])|\\cup|\\in(?![a-z])|=|<|>|\\[lg]eq?(?![a-z])")  # may stand for several values
RELATION = re.compile(r"\s*(?:[<>]|\\(?:[lg](?:t|eq?|eqq|eqslant)|neq?|not|sim)(?![A-Za-z]))")  # math-verify drops it from < 5
RELATIVE_TOLERANCE = 1e-9  # between numbers that are written out, at least one of them with a fraction or exponent


def decide(answer: str | None, gold: Gold) -> tuple[Outcome | None, str]:
    """The outcome, or None where only algebra can tell; and the answer as it was compared.

    Answers that would explode in algebra are UNPARSABLE unless they are spelled like the gold.
    """
    answer, right = answer or "", gold.answer
    if len(answer) > LONGEST_ANSWER:  # nothing but the same spelling, so that no pattern is slow on it
        return (Outcome.CORRECT if answer.strip(" $.") == right else Outcome.UNPARSABLE), ""
    bare, unit = split_unit(answer, gold.unit)
    left = normalise(bare)
    if not left:
        return Outcome.NO_ANSWER, left
    if INTERVAL.fullmatch(right):
        left = as_interval(left) or left
    if unit and unit != unit_name(gold.unit):
        return Outcome.INCORRECT, left
    if left == right or compact(left) == compact(right):
        return Outcome.CORRECT, left
    equal = same_words(left, right)
    if equal is None and (say_otherwise(left, right) or ("=" not in right and contradicts_itself(left))):
        equal = False
    if equal is None and APPROXIMATED.search(left) and not APPROXIMATED.search(right):
        return decide(without_approximation(left), gold)
    if equal is None:
        equal = same_numbers(left, right, gold.error)
    if equal is None:  # from the answer as it was written: 100,200 is a list where the gold is one
        equal = same_lists(values(bare), values(right), gold.error)
    if equal is None and (other_shape(left, right) or (not gold.error and surely_differ(left, right))):
        equal = False
    # math-verify drops the dots and compares what stands before them.
    if equal is None and (ELLIPSIS.search(left) or ELLIPSIS.search(right)):
        equal = False
    if equal is not None:
        return Outcome.CORRECT if equal else Outcome.INCORRECT, left
    return (Outcome.UNPARSABLE if too_explosive(left) else None), left


def other_shape(left: str, right: str) -> bool:
    """Whether two answers cannot be equal because of what they are: lists of other lengths, a number and a tuple, 5 and < 5."""
    if bool(RELATION.match(left)) != bool(RELATION.match(right)):
        return True
    if SHORTHAND.search(left) or SHORTHAND.search(right) or BRACKETED.match(left):
        return False
    wanted = values(right)
    if len(wanted) > 1:
        return len(values(left)) != len(wanted)
    is_tuple = BRACKETED.match(right) is not None and "," in right
    return is_tuple and (plain_number(left) is not None or plain_fraction(left) is not None)


def same_words(left: str, right: str) -> bool | None:
    r"""Whether an answer says the words of a gold that is nothing but words; None for other golds.

    Of bare words math-verify makes products of letters: Paris would equal raisP.
    """
    if (wanted := words(right)) is not None:
        return (words(left) or words(rf"\text{{{left}}}")) == wanted
    wanted = bare_words(right)
    return bare_words(left) == wanted if wanted else None


def same_numbers(left: str, right: str, error: float = 0.0) -> bool | None:
    """Whether two numbers are equal; None if either is something else."""
    number, wanted = plain_number(left), plain_number(right)
    if number is not None and wanted is not None:
        return close(number, wanted, error, exact=is_integer(left) and is_integer(right))
    if wanted is not None and not is_integer(right) and (point := decimal_comma(left)) is not None:
        return same_numbers(point, right, error)
    if wanted is not None and (measured := without_measure(left)) != left and is_written_out(measured):
        return same_numbers(measured, right, error)
    if (based := BASED.fullmatch(left)) and (wanted_based := BASED.fullmatch(right)):  # math-verify drops the base
        return based.groups() == wanted_based.groups()
    number, wanted = plain_fraction(left), plain_fraction(right)
    if number is not None and wanted is not None:
        return close(number, wanted, error, exact=True)
    if ASSIGNED.fullmatch(left) or ASSIGNED.fullmatch(right):
        return same_assigned(left, right, error)
    # Of a fraction and a decimal that is not quite equal, algebra knows how much to forgive.
    return True if (value := rational(left)) is not None and value == rational(right) else None


def same_assigned(left: str, right: str, error: float) -> bool | None:
    """Whether two numbers are equal of which at least one has a name, as in x = 5; None if their names differ."""
    parts = [ASSIGNED.fullmatch(side) for side in (left, right)]
    names = {symbol_name(part[1]) for part in parts if part}
    if len(names) > 1:
        return None
    return same_numbers(*(normalise(part[2]) if part else side for part, side in zip(parts, (left, right), strict=True)), error)


def is_written_out(text: str) -> bool:
    return rational(decimal_comma(text) or text) is not None


def rational(text: str) -> Fraction | None:
    return number if (number := plain_number(text)) is not None else plain_fraction(text)


def close(left: Fraction, right: Fraction, error: float, exact: bool) -> bool:
    tolerance = 0 if exact else RELATIVE_TOLERANCE * max(abs(left), abs(right))
    # OlympiadBench's own judge gives its error one per cent more.
    return abs(left - right) <= max(tolerance, Fraction(str(error)) * Fraction("1.01"))


def same_lists(left: list[str], right: list[str], error: float) -> bool | None:
    """Whether each value of one list has its own equal in the other, in any order; None unless all values are numbers."""
    if len(right) < 2 or not all(plain_number(value) is not None for value in (*left, *right)):
        return None
    if len(left) != len(right):
        return False
    waiting = list(left)
    for value in right:
        match = next((other for other in waiting if same_numbers(other, value, error)), None)
        if match is None:
            return False
        waiting.remove(match)
    return True
