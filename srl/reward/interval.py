r"""A solved inequality as the interval that it describes, where the gold is one: x < 3, 1 \le x < 2, {x | x < 3}, x \neq 3.

An inequality that is not solved stays one: the problem's own, written down again, is no answer.
"""

import re

from srl.reward.point import SYMBOL, SYMBOL_ALONE, Unread, symbol_name, symbols

INTERVAL = re.compile(r"(?:[A-Za-z]\s*\\in\s*)?(?:\\left)?\s*[(\[][^<>=]*,[^<>=]*")
BUILDER = re.compile(rf"\\\{{\s*{SYMBOL}\s*(?:\\in\s*\\mathbb\s*\{{?R\}}?\s*)?(?:\\mid(?![a-z])|[|:])(.+)\\\}}")
EITHER = re.compile(r"\\(?:text|mathrm)\s*\{\s*or\s*\}|\\lor(?![a-z])|\\vee(?![a-z])|\bor\b")
ALL = re.compile(r"(?:\\text\s*\{)?\s*all real(?: number)?s\s*\}?", re.IGNORECASE)
STRICT, UNEQUAL = {"<", ">", r"\lt", r"\gt"}, {r"\ne", r"\neq"}
LESS = {"<", r"\lt", r"\le", r"\leq", r"\leqslant"}
ORDER = re.compile(r"(<|>|\\[lg]t(?![a-z])|\\[lg]e(?:q|qslant)?(?![a-z])|\\neq?(?![a-z]))")


def as_interval(text: str) -> str | None:
    """Of a normalised answer; None for anything but inequalities of one symbol, joined by "or", whose other sides have none."""
    text = re.sub(r"\\(?:left|right)(?![a-z])", "", text)
    if ALL.fullmatch(text):
        return r"(-\infty, \infty)"
    if builder := BUILDER.fullmatch(text):
        text = builder[1]
    try:
        found = [solved(part) for part in EITHER.split(text)]
    except Unread:
        return None
    return r" \cup ".join(span for _, span in found) if len({name for name, _ in found}) == 1 else None


def solved(text: str) -> tuple[str, str]:
    """The symbol of one inequality and its interval. Raises Unread."""
    first, *rest = (part.strip() for part in ORDER.split(text))
    orders, sides = rest[::2], [first, *rest[1::2]]
    if len(orders) not in (1, 2) or not all(sides):
        raise Unread
    names = [side for side in sides if SYMBOL_ALONE.fullmatch(side) and side[0] not in "eEiI"]
    if len(names) != 1 or any(symbols(side) for side in sides if side not in names):
        raise Unread
    name, place = symbol_name(names[0]), sides.index(names[0])
    if orders[0] in UNEQUAL and len(orders) == 1:
        number = sides[1 - place]
        return name, rf"(-\infty, {number}) \cup ({number}, \infty)"
    rising = {order in LESS for order in orders}
    if len(rising) != 1 or set(orders) & UNEQUAL or (len(orders) == 2 and place != 1):
        raise Unread
    if rising == {False}:
        sides, orders = sides[::-1], orders[::-1]
    if sides[0] == names[0]:  # x < 3
        sides, orders = [r"-\infty", *sides], ["<", *orders]
    elif sides[-1] == names[0]:  # 3 < x
        sides, orders = [*sides, r"\infty"], [*orders, "<"]
    return name, f"{'[('[orders[0] in STRICT]}{sides[0]}, {sides[2]}{'])'[orders[1] in STRICT]}"
