r"""Refusals before any algebra: answers that sympy would only explode on, seen from their text."""

import math
import re

from srl.reward.answer import TOKEN

LONGEST_ANSWER = 2000  # characters
DEEPEST_BRACES = 80
LARGEST_ARGUMENT = 10_000  # of an exponent, a factorial or a binomial
LARGEST_MATRIX = 100  # entries
LONGEST_LIST = 64  # values, in a set or list

CARET = re.compile(r"(?:\^|\*\*)\s*")
EXPONENT_RUN = re.compile(r"[-+]?[\w.^]*(?:\*\*[\w.^]*)*")
NUMBER = re.compile(r"\d+")
NUMERIC_POWER = re.compile(r"(\d+)\s*\^\s*[{(]?\s*(\d+)")
IN_BRACES = r"[^(){}]*(?:\{[^{}]*\}[^(){}]*)*"
ARGUMENT = re.compile(  # of a factorial or binomial
    rf"(?<!\d)(\d+)\s*!|[({{]({IN_BRACES})[)}}]\s*!|\\[dt]?binom\s*\{{({IN_BRACES})\}}"
)


def too_explosive(answer: str) -> bool:
    """Whether to refuse an answer unread: too long, too deep, or a power, bound, factorial or binomial too large to evaluate.

    Looks at the text only. Towers of three exponents count as too large whatever they hold.
    """
    if len(answer) > LONGEST_ANSWER or deepest_braces(answer) > DEEPEST_BRACES:
        return True
    if answer.count("&") > LARGEST_MATRIX or answer.count(",") > LONGEST_LIST:
        return True
    if any(large_number(exponent) for exponent in exponents(answer)) or stacks(answer, 3):
        return True
    if "\\choose" in answer and large_number(answer):
        return True
    arguments = [group for match in ARGUMENT.finditer(answer) for group in match.groups(default="")]
    return any("!" in argument or large_number(argument) for argument in arguments)


def deepest_braces(text: str) -> int:
    depth = deepest = 0
    for match in TOKEN.finditer(text):
        depth += 1 if match["box"] or match["open"] else -1 if match["close"] else 0
        deepest = max(deepest, depth)
    return deepest


def exponents(text: str) -> list[str]:
    """What stands in exponents, outermost ones only: a group in braces or parentheses, or a run such as the 9^9 of 9^9^9."""
    found, position = [], 0
    while caret := CARET.search(text, position):
        position = caret.end()
        closing = {"{": "}", "(": ")"}.get(text[position : position + 1])
        if closing is None:
            end = EXPONENT_RUN.match(text, position).end()  # type: ignore[union-attr]
        else:
            end = group_end(text, position, closing)
        found.append(text[position:end])
        position = end
    return found


def group_end(text: str, start: int, closing: str) -> int:
    """Just past the group that opens at `start`; the end of the text if nothing closes it."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == text[start]) - (text[index] == closing)
        if depth == 0:
            return index + 1
    return len(text)


def stacks(text: str, levels: int) -> bool:
    """Whether it has a tower of that many exponents: x^2 has one, x^{y^2} two."""
    return levels == 0 or any(stacks(exponent, levels - 1) for exponent in exponents(text))


def large_number(text: str) -> bool:
    """Whether it holds an integer, or a power of integers, above LARGEST_ARGUMENT."""
    if any(len(digits.lstrip("0")) > 9 or int(digits[-9:]) > LARGEST_ARGUMENT for digits in NUMBER.findall(text)):
        return True
    return any(
        int(exponent) * math.log10(int(base)) > math.log10(LARGEST_ARGUMENT)
        for base, exponent in NUMERIC_POWER.findall(text)
        if int(base) > 1
    )
