r"""What an answer says beside its value: math-verify drops words and all but one side of an equality.

`5 \text{ squared}` is no 5, nor is `\sqrt{2} \approx 1.51` the root of two or `x = 5 = 6` a 6.
"""

import re
from itertools import pairwise

from srl.reward.differ import elements
from srl.reward.point import SYMBOL_ALONE, Unread, apart, symbols
from srl.reward.spelling import IN_TEXT, values

SCALING = re.compile(  # the number before it
    r"\W*(squared|cubed|factorial|hundred|thousand|[mb]illion|trillion|dozen|half|halves|thirds|quarters|fourths|fifths|sixths"
    r"|eighths|tenths|hundredths|thousandths)\b",
    re.IGNORECASE,
)
OTHERWISE = re.compile(r"\b(?:or|not|plus|minus|either|else|unless|instead|maybe|alternatively|vs)\b", re.IGNORECASE)
JOINED = re.compile(r"[\s,.]*(?:and|or)[\s,.]*", re.IGNORECASE)  # the values of a list
NEGATED = re.compile(r"\\(?:not|notin|neg|lnot)(?![A-Za-z])")
APPROXIMATED = re.compile(r"\\approx(?![A-Za-z])")
EQUALS = re.compile(r"(?<![<>:!\\])=+|\\approx(?![A-Za-z])")
ANGLES = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")  # in degrees, to some
DECIMALS = re.compile(r"-?\d+(?:\.(\d+))?")
ROUGHLY = 0.01  # relative


def say_otherwise(left: str, right: str) -> bool:
    """Whether one of two normalised answers takes back or changes its number in words, as the other does not."""
    return alterations(left) != alterations(right)


def alterations(answer: str) -> set[str]:
    found = set(NEGATED.findall(answer))
    for text in IN_TEXT.findall(answer):
        if not JOINED.fullmatch(text):
            found.update(word.lower() for word in OTHERWISE.findall(text))
            if scaling := SCALING.match(text):
                found.add(scaling[1].lower())
    return found


def without_approximation(answer: str) -> str:
    r"""What stands before the first `\approx`; behind it where that is nothing, or but a name."""
    before, *behind = map(str.strip, APPROXIMATED.split(answer, maxsplit=1))
    return behind[0] if behind and (not before or SYMBOL_ALONE.fullmatch(before)) else before


def contradicts_itself(answer: str) -> bool:
    """Whether it says of two different numbers that they are equal; one may be rounded."""
    for value in values(answer):
        sides = [(side.strip(), number) for side in EQUALS.split(value) if (number := number_of(side.strip())) is not None]
        if any(not rounds(number, *other) for (_, number), other in pairwise(sides)):
            return True
    return False


def number_of(text: str) -> complex | None:
    """None for anything but one number without symbols and angles."""
    if ANGLES.search(text) or len(found := elements(text)) != 1 or found[0].kind != "number" or found[0].name:
        return None
    try:
        return None if symbols(IN_TEXT.sub("", text)) else found[0].numbers[0]
    except Unread:  # it has more than an expression in it, such as a ratio
        return None


def rounds(number: complex, text: str, rounded: complex) -> bool:
    decimals = DECIMALS.fullmatch(text)
    unit = 10.0 ** -len(decimals[1] or "") if decimals else 0.0
    return not apart(number, rounded) or abs(number - rounded) < max(unit, ROUGHLY * abs(number))
