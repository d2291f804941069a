r"""From a response to its answer: the last box, or what a response without a box states."""

import re
from bisect import bisect_right

# Several backslashes: models also write the box with its JSON escape.
TOKEN = re.compile(r"(?P<box>\\{1,4}(?:boxed|fbox)[ \t]*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
VERDICT = re.compile(
    r"\[VERIFY\](?:[^\n]*?\b(?:correct|wrong)\b|[^\n]*)"
    r"|Is my most recent final answer correct \(Yes or No\)\?(?:[^\n]*?\b(?:yes|no)\b|[^\n]*)",
    re.IGNORECASE,
)

THOUGHT = "</think>"

TEXT = re.compile(r"\\(?:text|mbox|textrm|mathrm)\s*\{([^{}]*)\}")
LAYOUT = re.compile(r"[ \t$~&]|\\[ ,;:()!]|\\q?quad(?![a-z])")
LABEL = r"[A-Za-z](?:_(?:\w|\{\w{1,3}\}))?'?(?:\(\w\))?(?:=|\\in)"  # of the second box in "x = 1 and y_2 = 2"
JOINT = re.compile(rf"(?:for(?:part|case)?\(?\w\)?)?(?:,|,?(?:and|or))(?:{LABEL}|for(?:part|case)\(?\w\)?:?)?", re.IGNORECASE)
LONGEST_GAP = 80  # characters between boxes that are still one answer
MOST_BOXES = 64  # of one answer

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MARKER = re.compile(
    r"####|(?:\b(?:final |correct )?answer(?:\*\*)?(?: is|:|(?= *(?:\\\[|\\\(|\$)))(?:\*\*)?|^A:)\s*:?",
    re.IGNORECASE | re.MULTILINE,
)
MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$([^$\n]+?)(?<!\\)\$", re.DOTALL)
CLOSING_WORDS = re.compile(r"(?:I hope it is correct\.?|<\|[^|]*\|>.*)", re.DOTALL)
COPULA = re.compile(r"(?:\bis|\bare|\bequals|=)\s+(?P<value>\S*\d\S*)$")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\b")
PROSE = 3  # words or more
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w.]*\d)")
LONGEST_STATEMENT = 300  # characters
LONGEST_TAIL = 4000  # characters of a response in which an answer without a box is looked for


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{}` or `\fbox{}` outside a verdict, after the last `</think>`; None without one.

    Of nested boxes the innermost counts. Boxes with nothing between them but commas, spaces, "and" or "or", and a label
    such as "y =", are one answer of several values, joined with ", ".
    """
    text = text[after_thinking(text) :]
    verdicts = [match.span() for match in VERDICT.finditer(text)]
    parts: list[str] = []
    following = None
    for begin, opening, closing in reversed(innermost_boxes(text)):
        content = text[opening:closing]
        if in_verdict(begin, content, verdicts):
            continue
        if len(parts) == MOST_BOXES or (following is not None and not joins(text[closing + 1 : following])):
            break
        if content not in parts:
            parts.append(content)
        following = begin
    return ", ".join(reversed(parts)) if parts else None


def after_thinking(text: str) -> int:
    """Where what a model says begins: after the last `</think>`, or at 0."""
    return text.rfind(THOUGHT) + len(THOUGHT) if THOUGHT in text else 0


def joins(gap: str) -> bool:
    """Whether what stands between two boxes makes them one answer."""
    if "\n" in gap or len(gap) > LONGEST_GAP:
        return False
    bare = LAYOUT.sub("", TEXT.sub(r"\1", gap))
    return not bare or JOINT.fullmatch(bare) is not None


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


def first_box_end(text: str, start: int, limit: int) -> int | None:
    """Where the first box in `start:limit` ends, after its closing brace: at `limit` if it has none; None without a box."""
    depth = 0
    for match in TOKEN.finditer(text, start, limit):
        if match["box"] or (match["open"] and depth):
            depth += 1
        elif match["close"] and depth:
            depth -= 1
            if not depth:
                return match.end()
    return limit if depth else None


def in_verdict(begin: int, content: str, verdicts: list[tuple[int, int]]) -> bool:
    if VERDICT.search(content):
        return True
    before = bisect_right(verdicts, begin, key=lambda span: span[0]) - 1
    return before >= 0 and begin < verdicts[before][1]


def stated_answer(text: str) -> str | None:
    """The answer of a response that need not use a box; None if it states none.

    In this order: the last box; the last `<answer>`; what follows the last "answer is", "Answer:", "A:" or `####`; the last
    formula; a last sentence that ends in "is" and a number; the text itself if it is short and no prose. The last of several
    numbers in prose is not an answer.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed
    text = CLOSING_WORDS.sub("", VERDICT.sub("", text[after_thinking(text) :][-LONGEST_TAIL:])).strip()
    if tagged := TAGGED.findall(text):
        return tagged[-1].strip()
    if markers := list(MARKER.finditer(text)):
        return statement(text[markers[-1].end() :])
    if formulas := MATH.findall(text):
        return "".join(formulas[-1]).strip()
    text = text.rstrip(" .*")
    if len(text) > LONGEST_STATEMENT or is_prose(text):
        copula = COPULA.search(text[-LONGEST_STATEMENT:])
        return copula["value"] if copula else None
    return text or None


def statement(text: str) -> str | None:
    """What follows "the answer is": a formula at its start or on its first line, else that line, or the number in its prose."""
    text = text.strip()
    if (formula := MATH.match(text)) is not None:
        return "".join(group or "" for group in formula.groups()).strip()
    line = text.partition("\n")[0].strip(" .*")
    if formulas := MATH.findall(line):
        return "".join(formulas[-1]).strip()
    if is_prose(line):
        numbers = NUMBER.findall(line)
        return numbers[0] if len(numbers) == 1 else None
    return line or None


def is_prose(text: str) -> bool:
    return len(WORD.findall(text)) >= PROSE


def gold_answer(text: str) -> str:
    r"""The answer in a gold that may be a bare answer, hold a box, end in GSM8K's `#### 18` or say "The answer is 18"."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    markers = list(MARKER.finditer(text))
    return (statement(CLOSING_WORDS.sub("", text[markers[-1].end() :])) or "") if markers else text.strip()
