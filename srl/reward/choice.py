r"""Multiple choice: of a gold such as `\textbf{(B)}\ 12` an answer may give the letter, the value or both."""

import re
from functools import lru_cache

from srl.reward.gold import Gold
from srl.reward.spelling import normalise

LONGEST = 400  # characters
COMMAND = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*"
GAP = r"(?:\s|~|[:.]|\\[ ,;:]|\\q?quad(?![a-z]))"
MARKED = rf"{COMMAND}\{{\s*\(\s*(?P<inside>[A-H])\s*\){GAP}*\}}|\(\s*{COMMAND}\{{\s*(?P<outside>[A-H])\s*\}}\s*\)"
PLAIN = rf"\((?P<plain>[A-H])\)(?={GAP}*$|{GAP}+(?:[-+]?[\d.]|\\(?:[dt]?frac|sqrt|pi|text|\$)))"  # (A) x may be a product
CHOICE = re.compile(rf"(?:{MARKED}|{PLAIN}){GAP}*(?![\^_=,])(?P<value>.*)", re.DOTALL)
ANOTHER = re.compile(rf"\([A-H]\)|{COMMAND}\{{\s*\(?\s*[A-H]\s*\)?{GAP}*\}}")
LETTER = re.compile(rf"{COMMAND}\{{\s*([A-H])\s*\}}|([A-H])")


@lru_cache(maxsize=8192)
def split_choice(answer: str) -> tuple[str, str]:
    """Letter and value of a normalised answer, "" for the one it does not give."""
    if len(answer) > LONGEST:
        return "", answer
    if (match := CHOICE.fullmatch(answer)) and not ANOTHER.search(match["value"]):
        return match["inside"] or match["outside"] or match["plain"], normalise(match["value"])
    if match := LETTER.fullmatch(answer):
        return match[1] or match[2], ""
    return "", answer


def by_choice(answer: str, gold: Gold) -> tuple[str, Gold]:
    """Both reduced to letters, or else to values, where one of them gives both; otherwise as they are."""
    right, wanted = split_choice(gold.answer)
    if not right and "(" not in answer:
        return answer, gold
    letter, value = split_choice(normalise(answer))
    if not (letter and value) and not (right and wanted):
        return answer, gold
    if letter and right:
        return rf"\text{{{letter}}}", gold._replace(answer=rf"\text{{{right}}}")
    return (value, gold._replace(answer=wanted)) if value and wanted else (answer, gold)
