"""Every gold of the published benchmarks: it can be read, equals itself and no other problem's that has another value."""

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from srl.config import RewardConfig
from srl.reward.answer import last_boxed
from srl.reward.grader import Grader
from srl.tasks.benchmarks import asked
from srl.tasks.problems import Problem, load_problems
from srl.trajectory import Outcome

DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL = {
    "aime24": "aime24",
    "aime25": "aime25",
    "aime_history_train_deepscaler": "aime24",
    "aimo_validation_aime": "aime24",
    "amc23": "amc23",
    "gsm8k_test": "gsm8k",
    "gsm8k_train": "gsm8k",
    "math500": "math500",
    "minerva_math": "minerva",
    "olympiadbench": "olympiadbench",
}
LARGE = ["math_test", "math_train", "math_deepscaler_train"]  # of MATH
WITHOUT_ANSWER = {"math_train": [5342, 5344], "math_deepscaler_train": [887, 1010, 5329, 5331]}  # rows: an empty box, null

# Answer and gold of neighbours that are accepted, by eye: a unit, a percent sign or the variable's name is all they differ in.
EQUAL_BY_EYE = {("x=5", "5"), ("K=8", "8"), ("25", r"25\%"), ("21", r"21\text{ dogs}"), ("18", r"18 \text{ degrees}")}
EQUAL_BY_EYE |= {("7", r"7\%"), ("120", r"120^\circ"), (r"120^\circ", "120"), (r"\frac34", r"\frac{3}{4}")}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader(RewardConfig(deadline_s=20))
    yield grader
    grader.close()


def rows(file: str) -> list[dict]:
    if not DATA.is_dir():
        pytest.skip(f"the benchmarks are not here: {DATA}")
    return [json.loads(line) for line in (DATA / f"{file}.jsonl").read_text("utf-8").split("\n") if line.strip()]


def check(grader: Grader, source: str, questions: set[str], without_answer: int) -> None:
    problems = load_problems(source, "", "")
    assert len(problems) == len(questions) - without_answer
    grades = grader.grade([(last_boxed(f"It is $\\boxed{{{bare(problem)}}}$."), problem.gold) for problem in problems])
    assert [problem.gold for problem, grade in zip(problems, grades, strict=True) if grade.outcome is not Outcome.CORRECT] == []
    pairs = [(bare(other), problem.gold) for other, problem in zip(problems[1:], problems, strict=False)]
    accepted = [grade.outcome is Outcome.CORRECT for grade in grader.grade(pairs)]
    unexpected = [pair for pair, right in zip(pairs, accepted, strict=True) if right is not equal(*pair)]
    assert unexpected == []


def bare(problem: Problem) -> str:
    """The gold without what its benchmark says about units and errors."""
    return re.sub(r" \[(?:unit|error): [^\]]*\]$", "", problem.gold)


def equal(answer: str, gold: str) -> bool:
    """Without the grader: numbers by their value, anything else by its text or by eye."""
    values = [number(answer), number(gold)]
    if None not in values:
        return values[0] == values[1]
    return plain_text(answer) == plain_text(gold) or (answer, gold) in EQUAL_BY_EYE


def number(text: str) -> Fraction | None:
    text = re.sub(r"(?<=\d)(?:,|\{,\}|\\!|,\\!)(?=\d{3})", "", text)
    if match := re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", text):
        return Fraction(int(match[1] + match[2]), int(match[3]))
    return Fraction(text) if re.fullmatch(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text) else None


def plain_text(text: str) -> str:
    return re.sub(r"\\left|\\right|\\!|[\s$]", "", re.sub(r"\\[dt]frac", r"\\frac", text))


@pytest.mark.parametrize("file", SMALL)
def test_every_gold_of_a_benchmark_equals_itself_and_no_neighbour(grader: Grader, file: str) -> None:
    check(grader, f"{SMALL[file]}={DATA / file}.jsonl", {asked_of(row) for row in rows(file)}, 0)


def test_golds_of_math_equal_themselves_and_no_neighbour(grader: Grader, tmp_path: Path) -> None:
    every = [rows(file) for file in LARGE]
    some = [row for file in every for start in range(0, len(file), 500) for row in file[start : start + 20]]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, some)))
    check(grader, f"math={path}", {asked_of(row) for row in some}, 0)


@pytest.mark.long
@pytest.mark.parametrize("file", LARGE)
def test_all_golds_of_math_equal_themselves_and_no_neighbour(
    grader: Grader, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    without_answer = WITHOUT_ANSWER.get(file, [])
    check(grader, f"math={DATA / file}.jsonl", {asked_of(row) for row in rows(file)}, len(without_answer))
    said = capsys.readouterr().out
    assert "cannot be read" not in said
    assert ("left out" in said) is bool(without_answer) and ", ".join(map(str, without_answer)) in said


def asked_of(row: dict) -> str:
    """OlympiadBench has one question for several contexts."""
    return "\n".join(filter(None, (row.get("context"), asked(row)))).strip()
