r"""Whether two answers surely differ, from the values of their parts at one point (srl/reward/point.py).

An answer is a list of elements: numbers (any expression of one value) and rows (tuples, matrices, intervals and their unions).
Whether they are taken as sets, tuples or lists: answers of which one has a value that the other has not are not equal.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from srl.reward.equation import Equation, says_more, solutions_differ
from srl.reward.point import SYMBOL, SYMBOL_ALONE, UNDEFINED, Unread, apart, symbol_name, symbols, value
from srl.reward.readings import COMMAS, UNION, readings
from srl.reward.spelling import IN_TEXT, NOT_A_UNIT, both_signs, values

LONGEST = 400  # characters
MATRIX = re.compile(r"\\begin\{([bp])matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
ANGLE = r"\angle"
DEFINITION = re.compile(rf"({SYMBOL}(?:\([A-Za-z]\))?|{re.escape(ANGLE)}(?: ?{SYMBOL})+) ?(?:=|\\in(?![a-z])) ?(.+)")
SPACING = re.compile(r"\\(?:left|right|q?quad)(?![a-z])|(?<!\\)\\[,;: ]|~")
ORDER = {"<": "<", r"\lt": "<", ">": ">", r"\gt": ">"} | {
    rf"\{order}e{rest}": f"{sign}=" for order, sign in ("l<", "g>") for rest in ("", "q", "qslant")
}
INEQUALITY = re.compile(rf"(.+?)({'|'.join(map(re.escape, sorted(ORDER, key=len, reverse=True)))})(?![a-z])(.+)")
TURNED = str.maketrans("<>", "><")
UNIT = re.compile(r"\s*\\(?:text|textrm|mathrm|mbox)\s*\{[~\s]*([A-Za-z][A-Za-z. ]+)\}(?:\s*\^\s*\{?[23]\}?)?$")
DOLLARS = re.compile(r"^(-?) ?\\\$ ?")
BRACKETED_NUMBER = re.compile(r"\[ ?(-?\d+(?:\.\d+)?) ?\]")
POWER = re.compile(r"\^\s*\{[-+]?[\d.]+\}")
INEXACT = re.compile(r"(?!^)[-+]|\\(?!(?:[cdt]?frac|sqrt|times|cdot|pi)(?![a-z]))[A-Za-z]")
FORGIVEN = 1e-3  # relative
PERCENT = re.compile(r"\s*\\?%$")
SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
MIXED = re.compile(r"(-?)(\d+) ?\\[dt]?frac\{(\d+)\}\{(\d+)\}")  # 1\frac{1}{2} is one and a half
NO_NUMBERS = re.compile(r"[A-Za-z ,.'()-]+")
NUMBER_WORDS = re.compile(r"\b(?:pi|inf|infty|infinity|i|e|oo)\b", re.IGNORECASE)


class Element(NamedTuple):
    """`name`: the x of x = 5, which is an equation too; `kind`: number, percent, row, inequality, or equation (without numbers).

    An inequality between a symbol and a number has a name such as x>=.

    In an equation f(x) is the product of f and x: where that has different solutions, so has any function.
    """

    name: str
    kind: str
    numbers: tuple[complex, ...]
    equation: Equation | None = None
    exact: bool = False  # no sums or functions in it, so that even a number near 0 is exact but for the last digits


class Interval(NamedTuple):
    start: float
    open: bool  # at its start
    end: float
    closes: bool  # at its end


def surely_differ(left: str, right: str) -> bool:
    """Whether two normalised answers have different values; False where that is not sure."""
    if is_text(left) or is_text(right):
        return is_text(left) != is_text(right) and has_number(left if is_text(right) else right)
    return all(read_differ(one, other) for one, other in product(readings(left), readings(right)))


def is_text(answer: str) -> bool:
    """Whether it is words, or letters of choices, that are no number."""
    text = IN_TEXT.fullmatch(answer)
    return text is not None and NO_NUMBERS.fullmatch(text[1]) is not None and not NUMBER_WORDS.search(text[1])


def has_number(answer: str) -> bool:
    return bool(elements(answer)) and re.search(r"\d", re.sub(r"_(?:\w|\{\w+\})", "", answer)) is not None


def read_differ(left: str, right: str) -> bool:
    first, second = elements(left), elements(right)
    if not first or not second:
        return False
    if len(first) != len(second):
        first, second = taken_apart(first, second), taken_apart(second, first)
    return without_partner(first, second) or without_partner(second, first)


def taken_apart(these: Sequence[Element], others: Sequence[Element]) -> Sequence[Element]:
    """The values of a single row, if the other answer is a list of numbers: some write (1,2) for 1, 2."""
    if len(these) == 1 and these[0].kind == "row" and all(other.kind in ("number", "percent") for other in others):
        return [Element("", "number", (number,)) for number in these[0].numbers]
    return these


def without_partner(these: Sequence[Element], others: Sequence[Element]) -> bool:
    return any(all(differ(one, other) for other in others) for one in these)


def differ(left: Element, right: Element) -> bool:
    kinds = {left.kind, right.kind}
    if "inequality" in kinds:
        if len(kinds) == 1:
            return left.name == right.name and apart(*left.numbers, *right.numbers)
        return inequality_differs(left, right) if left.kind == "inequality" else inequality_differs(right, left)
    renamed = bool(left.name and right.name and left.name != right.name)
    if renamed or "equation" in kinds:
        return equations_differ(left, right) or (renamed and angles_differ(left, right))
    if "percent" in kinds and kinds <= {"number", "percent"}:  # 28 % is 28 and 0.28
        scales = [(1, 0.01) if element.kind == "percent" else (1,) for element in (left, right)]
        return all(apart(left.numbers[0] * one, right.numbers[0] * other) for one, other in product(*scales))
    if len(left.numbers) != len(right.numbers):
        return True
    if left.exact and right.exact:  # near 0 too
        [one], [other] = left.numbers, right.numbers
        return apart(one, other) or abs(one - other) > FORGIVEN * max(abs(one), abs(other))
    return any(apart(one, other) for one, other in zip(left.numbers, right.numbers, strict=True))


def inequality_differs(inequality: Element, other: Element) -> bool:
    """From an equation that is not true at a point of it, a number, and intervals of which none ends with its number."""
    if other.equation:
        name = inequality.name.rstrip("<>=")
        number = inequality.numbers[0] + (1.25 if ">" in inequality.name else -1.25)
        try:
            return apart(*(value(side, {name: number}) for side in other.equation))
        except (Unread, ArithmeticError, ValueError):
            return False
    if other.kind == "row":
        return all(apart(number, inequality.numbers[0]) for number in other.numbers)
    return other.kind == "number"


def equations_differ(left: Element, right: Element) -> bool:
    if left.equation and right.equation:
        if calls(left, right.equation) or calls(right, left.equation):
            return False
        return solutions_differ(left.equation, right.equation)
    equation, other = (left, right) if left.kind == "equation" else (right, left)
    return equation.kind == "equation" and other.kind in ("number", "row") and says_more(equation.equation, other.numbers)


def calls(definition: Element, equation: Equation) -> bool:
    """Whether an equation has the f of f(x) = x in it: nobody says if that is f(y) = y, or f = x."""
    function, parenthesis, _ = definition.name.partition("(")
    return bool(parenthesis) and symbol_name(function) in symbols(" ".join(equation))


def angles_differ(left: Element, right: Element) -> bool:
    angles = all(element.name.startswith(ANGLE) and element.kind == "number" for element in (left, right))
    return angles and apart(*left.numbers, *right.numbers)


@lru_cache(maxsize=8192)
def elements(text: str) -> tuple[Element, ...]:
    """Of a normalised answer; none if any part of it is not read."""
    if len(text) > LONGEST or COMMAS.search(text):
        return ()
    try:
        return tuple(element(signed) for part in values(SPACING.sub(" ", text)) for signed in both_signs(part))
    except (Unread, ArithmeticError, ValueError, RecursionError):
        return ()


def element(text: str) -> Element:
    text = DOLLARS.sub(r"\1", text.strip())
    if definition := DEFINITION.fullmatch(text):
        body = element(definition[2])
        if body.name or body.equation:  # x = y = 1
            raise Unread
        equation = (definition[1], definition[2]) if body.kind == "number" and not definition[1].startswith(ANGLE) else None
        return body._replace(name=re.sub(r"[\s{}]", "", definition[1]).lower(), equation=equation)
    if (unit := UNIT.search(text)) and not NOT_A_UNIT.search(unit[1]):
        text = text[: unit.start()]
    if matrix := MATRIX.fullmatch(text):
        cells = [cell for row in matrix[2].split("\\\\") for cell in row.split("&")]
        return Element("", "row", tuple(map(number, cells)))
    if (inequality := INEQUALITY.fullmatch(text)) and not re.search("[<>=]", inequality[1] + inequality[3]):
        return inequality_between(inequality[1].strip(), ORDER[inequality[2]], inequality[3].strip())
    if text.count("=") == 1:
        left, _, right = text.partition("=")
        value(left), value(right)
        return Element("", "equation", (), (left, right))
    if UNION.search(text):
        return union(UNION.split(text))
    if text[:1] in ("(", "[") and len(inside := values(text[1:-1])) > 1 and text[-1:] in (")", "]"):
        return Element("", "row", tuple(map(number, inside)))
    if bracketed := BRACKETED_NUMBER.fullmatch(text):
        text = bracketed[1]
    if mixed := MIXED.fullmatch(text):
        return Element("", "number", (int(mixed[1] + "1") * (int(mixed[2]) + number(rf"\frac{{{mixed[3]}}}{{{mixed[4]}}}")),))
    if text.count(":") == 1:  # a ratio
        part, whole = map(value, text.split(":"))
        return Element("", "number", (part / whole,))
    if PERCENT.search(text):
        return Element("", "percent", (value(PERCENT.sub("", text)),))
    return Element("", "number", (number(text),), exact=not INEXACT.search(POWER.sub("", text)))


def number(text: str) -> complex:
    """UNDEFINED where it divides by zero."""
    try:
        return value(text)
    except ZeroDivisionError:
        return UNDEFINED


def inequality_between(left: str, order: str, right: str) -> Element:
    """Raises Unread unless it is between a symbol and a number."""
    if SYMBOL_ALONE.fullmatch(right):
        left, order, right = right, order.translate(TURNED), left
    if not SYMBOL_ALONE.fullmatch(left) or symbols(right) or left[0] in "eEiI":
        raise Unread
    return Element(symbol_name(left) + order, "inequality", (value(right),))


def union(parts: Sequence[str]) -> Element:
    """Ends of the intervals after those that touch are joined: unions of other ends are other sets. Raises Unread for more.

    A gap of one point, as between (0,1) and (1,2), has two ends; empty intervals have none.
    """
    merged: list[Interval] = []
    for part in sorted(interval for text in parts for interval in intervals(text.strip())):
        if merged and (part.start < merged[-1].end or (part.start == merged[-1].end and (merged[-1].closes or not part.open))):
            last = merged.pop()
            end, closes = max((last.end, last.closes), (part.end, part.closes))
            part = Interval(last.start, last.open, end, closes)
        merged.append(part)
    if not merged:
        raise Unread
    return Element("", "row", tuple(complex(end) for interval in merged for end in (interval.start, interval.end)))


def intervals(text: str) -> list[Interval]:
    r"""Of an interval, or one for each number in a set such as \{1, 2\}; none of what is empty."""
    if numbers := SET.fullmatch(text):
        return [Interval(real(number), False, real(number), True) for number in values(numbers[1])]
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or len(inside := values(text[1:-1])) != 2:
        raise Unread
    found = Interval(real(inside[0]), text[0] == "(", real(inside[1]), text[-1] == "]")
    empty = found.start > found.end or (found.start == found.end and (found.open or not found.closes))
    return [] if empty else [found]


def real(text: str) -> float:
    number = value(text)
    if number.imag:
        raise Unread
    return number.real
