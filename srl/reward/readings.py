r"""All that a normalised answer may mean where notation leaves it open: (3,331) is a pair to some and 3331 to others.

Each rule takes a text to its readings, in spellings that `srl.reward.point` reads in one way. Answers differ where all of the
readings of one do from all of the other's, so that a rule may add readings that few would choose, but not leave one out.
"""

import re
from functools import lru_cache
from itertools import product

from srl.reward.point import FUNCTIONS, SYMBOL

MOST = 8  # readings of one answer

COMMAS = re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)")
MOST_COMMAS = 3
DECIMAL = re.compile(r"([-+]?\d+),(\d+)")
UNION = re.compile(r"\\cup(?![a-z])")
LONG_POWER = re.compile(r"\^ ?(\d)(\d+)")
DEGREES = re.compile(r"(\d+(?:\.\d+)?|(?<![\\A-Za-z])[A-Za-z])\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))")
LOGARITHM = re.compile(r"\\log(?![A-Za-z]|\s*_)")
CONSTANTS = {r"(?<!\\mathcal\{)I": ("i", r"\iota "), r"(?<!\\mathcal\{)E": ("e", r"\epsilon ")}
BRACKETS = re.compile(r"\\left\s*\[|\\right\s*\]")
BASED = re.compile(r"(-?)(\d[0-9A-Za-z]*)(?:\.([0-9A-Za-z]+))?_\{?(\d{1,2})\}?")
NAMES = "|".join(FUNCTIONS)
ARGUMENT = re.compile(
    rf"(\\(?:(?:{NAMES})(?![A-Za-z])|log\s*_\s*(?:\d|\{{\d+\}}))(?:\s*\^\s*(?:\d|\{{\d\}}))?)"
    rf"\s*(\d+(?:\.\d+)?|\\pi(?![a-z])|{SYMBOL})((?:\s*(?:\\pi(?![a-z])|{SYMBOL}|\([A-Za-z]\)))*)"
    rf"\s*(?=$|[-+)}}\]=,<>&]|\\(?:(?:{NAMES}|right|end)(?![a-z])|\\))"
)


@lru_cache(maxsize=8192)
def readings(answer: str) -> tuple[str, ...]:
    """At least one; none of them is read by `srl.reward.differ` if there are too many to try."""
    texts = (answer,)
    for rule in (commas, long_powers, based, degrees, logarithms, constants, brackets, arguments):
        texts = tuple(dict.fromkeys(reading for text in texts for reading in rule(text)))
        if len(texts) > MOST:
            return ("",)
    return texts


def commas(text: str) -> tuple[str, ...]:
    """(3,331) and (2,251,252): each comma may separate thousands, or values; 3,5 may be three and a half."""
    if decimal := DECIMAL.fullmatch(text):
        return tuple(f"{decimal[1]}{comma}{decimal[2]}" for comma in (".", ", ", "")[: 3 if len(decimal[2]) == 3 else 2])
    found = COMMAS.findall(text)
    if len(found) != 1 or found[0].count(",") > MOST_COMMAS:
        return (text,)
    if UNION.search(text):  # of intervals
        return (text.replace(found[0], found[0].replace(",", ", ")),)
    first, *others = found[0].split(",")
    choices = product(("", ", "), repeat=len(others))
    return tuple(text.replace(found[0], first + "".join(map("".join, zip(choice, others, strict=True)))) for choice in choices)


def long_powers(text: str) -> tuple[str, ...]:
    """x^23 has an exponent of two digits or, in LaTeX, is three times x^2."""
    if not LONG_POWER.search(text):
        return (text,)
    return tuple(LONG_POWER.sub(power, text) for power in (r"^{\1\2}", r"^{\1} \\cdot \2"))


def based(text: str) -> tuple[str, ...]:
    """1202_3 is 47, and 1202 to those who drop the base."""
    match = BASED.fullmatch(text)
    if match is None:
        return (text,)
    sign, whole, fraction, base = match[1], match[2], match[3] or "", int(match[4])
    found = [f"{sign}{whole}.{fraction or 0}"] if (whole + fraction).isdigit() else []
    if base in range(2, 37) and all(int(digit, 36) < base for digit in whole + fraction):
        found.append(rf"{sign}\frac{{{int(whole + fraction, base)}}}{{{base ** len(fraction)}}}")
    return tuple(found) or (text,)


def degrees(text: str) -> tuple[str, ...]:
    """58 degrees are 58, or the angle in radians."""
    if not DEGREES.search(text):
        return (text,)
    return (DEGREES.sub(r"\1", text), DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text))


def logarithms(text: str) -> tuple[str, ...]:
    if not LOGARITHM.search(text):
        return (text,)
    return (LOGARITHM.sub(r"\\ln ", text), LOGARITHM.sub(r"\\log_{10}", text))


def constants(text: str) -> tuple[str, ...]:
    """I and E are symbols, or the constants that i and e are."""
    texts = (text,)
    if r"\angle" in text:  # A E B
        return texts
    for letter, meanings in CONSTANTS.items():
        alone = re.compile(rf"(?<![\\A-Za-z]){letter}(?![A-Za-z_]| _)")  # those with a subscript are not read
        if alone.search(text):
            texts = tuple(alone.sub(lambda _, m=meaning: m, one) for one in texts for meaning in meanings)
    return texts


def brackets(text: str) -> tuple[str, ...]:
    """Large square brackets around something that is no list are parentheses or, to some, the floor."""
    found = BRACKETS.findall(text)
    if not found or "," in text or UNION.search(text) or 2 * sum("left" in bracket for bracket in found) != len(found):
        return (text,)
    kinds = (("(", ")"), (r"\lfloor ", r"\rfloor "))
    return tuple(BRACKETS.sub(lambda match, k=kind: k["right" in match.group()], text) for kind in kinds)


def arguments(text: str) -> tuple[str, ...]:
    r"""\sin 3x is the sine of 3x, or x times that of 3."""
    if not ARGUMENT.search(text):
        return (text,)
    first = ARGUMENT.sub(lambda match: f"{match[1]}({match[2]})" + (rf" \cdot {match[3]}" if match[3] else ""), text)
    return (ARGUMENT.sub(r"\1(\2\3)", text), first)
