"""The published benchmarks: where each is on the hub, how its rows are read, and where its gold answers are.

A source names one as `math500`, `math:train` (another split of it) or `minerva=FILE` (the same rows in a local file).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srl.reward.answer import last_boxed
from srl.reward.gold import write_gold
from srl.reward.spelling import normalise, values

Row = dict[str, Any]

# OlympiadBench, by id: golds that say something else than their solution, or that no parser reads.
OLYMPIAD_CORRECTIONS = {2045: r"t \in (0,4]"}


def asked(row: Row) -> str:
    """The columns `problem` and `question` are two names of one thing. Raises KeyError if there is neither."""
    return row["problem"] if "problem" in row else row["question"]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`question` and `gold` read a row; a gold of None says that the row has no answer to compare with (a proof)."""

    hub: str
    split: str
    gold: Callable[[Row], str | None]
    question: Callable[[Row], str] = asked
    subset: str | None = None


def olympiad_question(row: Row) -> str:
    return "\n".join(filter(None, (row.get("context"), asked(row))))


def boxed_in_solution(row: Row) -> str | None:
    """MATH, Minerva, NuminaMath-CoT: the last box of the solution; hub copies that have an `answer` column repeat it there."""
    if (answer := row.get("answer")) is not None:
        return str(answer)
    return last_boxed(row["solution"]) if "solution" in row or "answer" not in row else None


def after_marker(row: Row) -> str:
    """GSM8K: the text after `####`."""
    return row["answer"].rpartition("####")[2]


def number(row: Row) -> str:
    """AIME and AMC: an integer, which files write as 70, "025", "70^\\circ" or 27.0."""
    answer = normalise(boxed_in_solution(row) or "")
    return str(int(float(answer))) if answer.replace(".", "", 1).isdigit() and float(answer).is_integer() else answer


def olympiad_answer(row: Row) -> str:
    """OlympiadBench: one text in a list, with several answers in it if `is_multiple_answer`; `unit` and `error` beside it."""
    answer = OLYMPIAD_CORRECTIONS.get(row["id"]) or ", ".join(map(str, row["final_answer"]))
    if row["is_multiple_answer"]:
        answer = ", ".join(values(answer.replace("$", "")))
    return write_gold(answer.replace("$", ""), row.get("unit"), row.get("error"))


BENCHMARKS = {
    "math": Benchmark("DigitalLearningGmbH/MATH-lighteval", "test", boxed_in_solution),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", boxed_in_solution),
    "gsm8k": Benchmark("openai/gsm8k", "test", after_marker, subset="main"),
    "minerva": Benchmark("math-ai/minervamath", "test", boxed_in_solution),
    "olympiadbench": Benchmark("Hothan/OlympiadBench", "train", olympiad_answer, olympiad_question, "OE_TO_maths_en_COMP"),
    "aime24": Benchmark("math-ai/aime24", "test", number),
    "aime25": Benchmark("math-ai/aime25", "test", number),
    "amc23": Benchmark("math-ai/amc23", "test", number),
    "numina": Benchmark("AI-MO/NuminaMath-CoT", "train", boxed_in_solution),
}
