"""How a model says what it thinks of its own answer, and where one long chain is cut into turns. Pure functions."""

import re
from dataclasses import dataclass

from srl.reward.answer import after_thinking, first_box_end, last_boxed
from srl.trajectory import TurnKind, Verdict

# The verdict, or only its word, may stand in a box of its own, in bold or between dollars: `\boxed{\text{[VERIFY] wrong.}}`,
# `[VERIFY] \boxed{\textbf{wrong}}`, `**Yes**`. All of that is part of the verdict.
BOX = r"(?:\$*\s*\\(?:boxed|fbox)\s*\{\s*)?(?:\\(?:text|textbf|mathrm|mbox)\s*\{\s*)?(?:\*\*)?"
END_OF_BOX = r"\b(?:\*\*)?[.!]?(?:\*\*)?(?:\s*\}){0,2}(?:\.?\$+)?\.?"
QUESTION = r"Is my most recent final answer correct \(Yes or No\)\?"
GRAMMARS = {
    "verify": re.compile(BOX + r"\[VERIFY\]:?\s*" + BOX + r"(?P<word>correct|wrong)" + END_OF_BOX, re.IGNORECASE),
    "yes_no": re.compile(BOX + QUESTION + r"(?:\*\*)?\s*" + BOX + r"(?P<word>Yes|No)" + END_OF_BOX, re.IGNORECASE),
}
SPOKEN = {
    "verify": {Verdict.CORRECT: "[VERIFY] correct", Verdict.WRONG: "[VERIFY] wrong"},
    "yes_no": {
        Verdict.CORRECT: "Is my most recent final answer correct (Yes or No)? Yes",
        Verdict.WRONG: "Is my most recent final answer correct (Yes or No)? No",
    },
}
MARKERS = {"verify": re.compile(r"\[VERIFY\]", re.IGNORECASE), "yes_no": re.compile(QUESTION, re.IGNORECASE)}
OPEN = {name: re.compile(marker.pattern + r"[\s:*$]*\Z", re.IGNORECASE) for name, marker in MARKERS.items()}
POSITIVE = {"correct", "yes"}


@dataclass(frozen=True, slots=True)
class Segment:
    """Characters `start:end` of a response, and what they are. Segments of a response cover it without gaps."""

    kind: TurnKind
    start: int
    end: int
    verdict: Verdict | None = None
    answer: str | None = None


def verdict_of(match: re.Match[str]) -> Verdict:
    return Verdict.CORRECT if match["word"].lower() in POSITIVE else Verdict.WRONG


def spoken(verdict: Verdict, grammar: str) -> str:
    """The verdict in the words that a model of this grammar uses."""
    return SPOKEN[grammar][verdict]


def only_match(text: str, grammar: str) -> re.Match[str] | None:
    """The verdict in a self-evaluation; None unless there is exactly one marker and it has a word (paper, section 3.1)."""
    begin = after_thinking(text)
    matches = list(GRAMMARS[grammar].finditer(text, begin))
    return matches[0] if len(matches) == 1 and len(MARKERS[grammar].findall(text, begin)) == 1 else None


def only_verdict(text: str, grammar: str) -> Verdict | None:
    match = only_match(text, grammar)
    return match and verdict_of(match)


def first_verdict(text: str, grammar: str) -> tuple[int, int] | None:
    """Where the first verdict begins, and where its word does; None without one, or where it stands in a box."""
    match = GRAMMARS[grammar].search(text, after_thinking(text))
    if match is None or "{" in text[match.start() : match.start("word")]:
        return None
    return match.start(), match.start("word")


def awaits_word(text: str, grammar: str) -> bool:
    """Whether the text ends with all of a verdict but its word."""
    return OPEN[grammar].search(text) is not None


def cut_chain(text: str, grammar: str) -> list[Segment]:
    """Attempt, verdict, revision, verdict, ... of one response.

    An answer ends with the line of its first box; the check and its verdict reach to the end of the marker. A verdict
    without a box since the one before it judges the same answer again: no empty revision stands between them. What follows
    the last verdict is a revision if it has a box or if the verdict was "wrong" and it is not blank; otherwise it belongs
    to that verdict. What is thought before the last `</think>` is part of the attempt, and nothing in it counts.
    """
    segments: list[Segment] = []
    position, begin = 0, after_thinking(text)
    for match in GRAMMARS[grammar].finditer(text, begin):
        answer_end = end_of_answer(text, max(position, begin), match.start())
        if answer_end is None:
            answer_end = position if segments else match.start()
        kind = TurnKind.REVISION if segments else TurnKind.ATTEMPT
        if not segments or answer_end > position:
            segments.append(Segment(kind, position, answer_end, answer=last_boxed(text[position:answer_end])))
        segments.append(Segment(TurnKind.VERDICT, answer_end, match.end(), verdict=verdict_of(match)))
        position = match.end()
    tail = text[position:]
    answer = last_boxed(tail)
    if not segments:
        return [Segment(TurnKind.ATTEMPT, 0, len(text), answer=answer)]
    last = segments[-1]
    if answer is not None or (last.verdict is Verdict.WRONG and tail.strip()):
        segments.append(Segment(TurnKind.REVISION, position, len(text), answer=answer))
    else:
        segments[-1] = Segment(TurnKind.VERDICT, last.start, len(text), verdict=last.verdict)
    return segments


def end_of_answer(text: str, start: int, limit: int) -> int | None:
    """Where the answer that begins at `start` ends: after the line in which its first box closes, or with that box where the
    line has no end; None without a box."""
    box = first_box_end(text, start, limit)
    if box is None:
        return None
    newline = text.find("\n", box, limit)
    return newline if newline >= 0 else box
