"""grade: grade answers in a file, without any model, run or Ray."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srl.config import Config, ConfigError
from srl.reward.answer import last_boxed, stated_answer
from srl.reward.gold import write_gold
from srl.reward.grader import Grade, Grader
from srl.reward.rules import share_alarm

BATCH = 256  # rows that are graded before they are written
INVALID_GOLD = "invalid_gold"  # not a grade: the gold is to blame
EPILOG = r"""Fields of a row: prediction (a response or a bare answer), gold, and if the gold has them unit and error (absolute).
Added: correct, status (correct, incorrect, no_answer, unparsable, timeout, or invalid_gold), answer (what was graded), ms.
Without a box the answer is what the prediction states, or all of it if it is short; --boxed takes nothing but boxes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--input", default="-", metavar="FILE", help="JSON lines; - is standard input (default)")
    parser.add_argument("--output", default="-", metavar="FILE", help="the same rows, graded; - is standard output (default)")
    parser.add_argument("--boxed", action="store_true", help=r"only \boxed{} is an answer, as in the rewards of a run")


def run(options: argparse.Namespace, config: Config) -> None:
    rows = list(read_rows(options.input))
    extract = last_boxed if options.boxed else stated_answer
    grader = Grader(config.reward)
    try:
        if options.output == "-":
            grades = write_rows(sys.stdout, rows, grader, extract)
        else:
            with Path(options.output).open("w", encoding="utf-8") as file:
                grades = write_rows(file, rows, grader, extract)
    except OSError as error:
        if options.output == "-" and isinstance(error, BrokenPipeError):
            raise  # a reader that has seen enough is no mistake: the command line ends without a word
        raise ConfigError(f"--output {options.output}: {error.strerror}") from None
    finally:
        grader.close()
    summarise(grades, config.reward.alarm_share)


def read_rows(source: str) -> Iterator[dict[str, Any]]:
    """Raises ConfigError naming the row (the line, from 1) that cannot be graded."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input {source}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    # Not splitlines(): a prediction may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # an integer may be too long for Python
            raise ConfigError(f"--input {source}, row {number}: not JSON: {error}") from None
        if (wrong := complaint(row)) is not None:
            raise ConfigError(f"--input {source}, row {number}: {wrong}")
        yield row


def complaint(row: Any) -> str | None:
    """What about a row cannot be graded. A gold that is empty can: its row is marked."""
    missing = [field for field in ("prediction", "gold") if not isinstance(row, dict) or field not in row]
    if missing:
        return f"no field {missing[0]!r}"
    for field in ("prediction", "gold", "unit", "error"):
        value = row.get(field)
        of_gold = value if field == "gold" and isinstance(value, list) else [value]
        if value is not None and not all(is_text(part) for part in of_gold):
            kinds = "text, a number or a list of them" if field == "gold" else "text or a number"
            return f"{field!r} is not {kinds}: {json.dumps(value)[:100]}"
    return None


def is_text(value: Any) -> bool:
    """Text, or a number that stands for itself: true, NaN and Infinity do not."""
    return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def write_rows(file: Any, rows: list[dict[str, Any]], grader: Grader, extract: Any) -> list[Grade]:
    grades = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        answers = [None if row["prediction"] is None else extract(str(row["prediction"])) for row in batch]
        pairs = [(answer, gold_of(row)) for answer, row in zip(answers, batch, strict=True)]
        for row, answer, grade in zip(batch, answers, grader.grade(pairs), strict=True):
            status = str(grade.outcome) if grade.outcome else INVALID_GOLD
            added = {"correct": status == "correct", "status": status, "answer": answer, "ms": round(grade.ms, 3)}
            file.write(json.dumps(row | added) + "\n")
            grades.append(grade)
        file.flush()
    return grades


def gold_of(row: dict[str, Any]) -> str:
    gold = row["gold"]
    text = ", ".join(map(str, gold)) if isinstance(gold, list) else "" if gold is None else str(gold)
    return write_gold(text, row.get("unit"), row.get("error"))


def summarise(grades: list[Grade], alarm_share: float) -> None:
    """To standard error: counts by status, the first gold that could not be read, the alarm."""
    counts = Counter(str(grade.outcome) if grade.outcome else INVALID_GOLD for grade in grades)
    print(f"{len(grades)} graded: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()), file=sys.stderr)
    invalid = [(number, grade.message) for number, grade in enumerate(grades, 1) if grade.outcome is None]
    if invalid:
        print(f"WARNING: {len(invalid)} golds cannot be read; the first, row {invalid[0][0]}: {invalid[0][1]}", file=sys.stderr)
    outcomes = Counter(grade.outcome for grade in grades if grade.outcome)
    if (alarm := share_alarm(outcomes, alarm_share)) is not None:
        print(f"ALARM: {alarm}", file=sys.stderr)
