"""From text to an answer: extraction, normalisation and the cheap refusals that come before any algebra."""

import math
import re
from fractions import Fraction

LONGEST_ANSWER = 2000  # characters
DEEPEST_BRACES = 50
LARGEST_ARGUMENT = 10_000  # of an exponent, a factorial or a binomial

# Several backslashes: models also write the box with its JSON escape.
TOKEN = re.compile(r"(?P<box>\\{1,4}(?:boxed|fbox)[ \t]*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
BETWEEN = re.compile(r"(?:[ \t,$]|\\[ ,;:()]|~|\\q?quad(?![a-z])|\b(?:and|or)\b|\\(?:text|mbox)\{\s*,?\s*(?:and|or)\s*\})*")
VERDICT = re.compile(
    r"\[VERIFY\](?:[^\n]*?\b(?:correct|wrong)\b|[^\n]*)"
    r"|Is my most recent final answer correct \(Yes or No\)\?(?:[^\n]*?\b(?:yes|no)\b|[^\n]*)",
    re.IGNORECASE,
)

SIGN = r"[+-]?"
SEPARATOR = r"(?:,|\{,\}|\\,|\\ |~| )"
GROUPED = re.compile(rf"{SIGN}\d{{1,3}}(?:{SEPARATOR}\d{{3}})+(?:\.\d+)?")
GROUPED_ARGUMENT = re.compile(r"(?<!\\)\{\d{1,3}(?:,\d{3})+\}")  # the 5,525 of \frac{12}{5,525}, not a set
E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?![\w.])")
EXPONENT = rf"\s*10\s*\^\s*(?P<exponent>\{{\s*{SIGN}\d{{1,4}}\s*\}}|{SIGN}\d{{1,4}})"
TIMES = r"\s*(?:\\times|\\cdot|\\ast|×|·|\*)"
SCIENTIFIC = re.compile(rf"(?P<mantissa>{SIGN}(?:\d+\.?\d*|\.\d+))(?:{TIMES}{EXPONENT})?")
POWER_OF_TEN = re.compile(rf"(?P<sign>{SIGN}){EXPONENT}")
INTEGER = re.compile(rf"{SIGN}\d+")

CARET = re.compile(r"(?:\^|\*\*)\s*")
EXPONENT_RUN = re.compile(r"[-+]?[\w.^]*(?:\*\*[\w.^]*)*")
NUMBER = re.compile(r"\d+")
NUMERIC_POWER = re.compile(r"(\d+)\s*\^\s*[{(]?\s*(\d+)")
IN_BRACES = r"[^(){}]*(?:\{[^{}]*\}[^(){}]*)*"
ARGUMENT = re.compile(  # of a factorial or binomial
    rf"(?<!\d)(\d+)\s*!|[({{]({IN_BRACES})[)}}]\s*!|\\[dt]?binom\s*\{{({IN_BRACES})\}}"
)


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{}` or `\fbox{}` outside a verdict, after the last `</think>`; None without one.

    Of nested boxes the innermost counts. Boxes with nothing between them but commas, spaces, "and" or "or" are one
    answer of several values, joined with ", ".
    """
    text = text.rpartition("</think>")[2]
    verdicts = [match.span() for match in VERDICT.finditer(text)]
    boxes = [box for box in innermost_boxes(text) if not in_verdict(box, text, verdicts)]
    if not boxes:
        return None
    parts: list[str] = []
    following = None
    for begin, opening, closing in reversed(boxes):
        if following is not None and not BETWEEN.fullmatch(text, closing + 1, following):
            break
        content = text[opening:closing]
        if content not in parts:
            parts.append(content)
        following = begin
    return ", ".join(reversed(parts))


def innermost_boxes(text: str) -> list[tuple[int, int, int]]:
    """(start of the command, start of the content, end of the content) of balanced boxes that hold no other box, in order."""
    boxes: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int] | None] = []
    for match in TOKEN.finditer(text):
        if match["box"]:
            stack.append(match.span())
        elif match["open"]:
            stack.append(None)
        elif match["close"] and stack:
            span = stack.pop()
            if span is not None and not (boxes and boxes[-1][0] > span[0]):
                boxes.append((span[0], span[1], match.start()))
    return boxes


def in_verdict(box: tuple[int, int, int], text: str, verdicts: list[tuple[int, int]]) -> bool:
    begin, opening, closing = box
    return "[VERIFY]" in text[opening:closing].upper() or any(start <= begin < end for start, end in verdicts)


def normalise(answer: str) -> str:
    r"""One spelling of an answer for comparison as a string; applying it twice changes nothing.

    Drops `$` (not `\$`), `\!`, outer spaces, one final full stop and thousands separators in plain numbers; rewrites
    `4.5e33`, in which math-verify would see Euler's number, to `4.5 \times 10^{33}` and `1./3`, which it cannot read, to `1/3`.
    """
    text = re.sub(r"\\!\s*", "", answer.replace("−", "-"))
    text = " ".join(re.sub(r"(?<!\\)\$", "", text).split())
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    if len(text) <= LONGEST_ANSWER and GROUPED.fullmatch(text):
        text = re.sub(SEPARATOR, "", text)
    text = GROUPED_ARGUMENT.sub(lambda match: match.group().replace(",", ""), text)
    text = re.sub(r"(?<=\d)\.(?=/)", "", text)
    return E_NOTATION.sub(r"\1 \\times 10^{\2}", text)


def plain_number(answer: str) -> Fraction | None:
    r"""The exact value of a normalised integer, decimal or `a \times 10^{n}` with |n| < 10^4; None for anything else."""
    if len(answer) > LONGEST_ANSWER:
        return None
    if match := SCIENTIFIC.fullmatch(answer):
        exponent = int((match["exponent"] or "0").strip("{} "))
        return Fraction(match["mantissa"]) * Fraction(10) ** exponent
    if match := POWER_OF_TEN.fullmatch(answer):
        return Fraction(match["sign"] + "1") * Fraction(10) ** int(match["exponent"].strip("{} "))
    return None


def is_integer(answer: str) -> bool:
    """Whether a normalised answer is written as an integer, which has no rounding to forgive."""
    return INTEGER.fullmatch(answer) is not None


def too_explosive(answer: str) -> bool:
    """Whether to refuse an answer unread: too long, too deep, or a power, bound, factorial or binomial too large to evaluate.

    Looks at the text only. Towers of three exponents count as too large whatever they hold.
    """
    if len(answer) > LONGEST_ANSWER or deepest_braces(answer) > DEEPEST_BRACES:
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
