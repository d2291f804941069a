import json
import re
from pathlib import Path

import pytest

from srl.config import ConfigError, RewardConfig
from srl.reward.grader import Grader
from srl.tasks.benchmarks import BENCHMARKS
from srl.tasks.problems import Problem, load_problems
from srl.trajectory import Outcome

DATA = Path(__file__).parents[2] / "shared" / "data"
OLYMPIAD = {"id": 1, "context": None, "question": "q", "is_multiple_answer": False, "unit": None, "error": None}


def load(folder: Path, benchmark: str, *rows: dict) -> list[Problem]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_problems(f"{benchmark}={path}", "", "")


@pytest.mark.parametrize(
    ("benchmark", "row", "gold"),
    [
        ("math", {"problem": "q", "solution": r"so $x = \boxed{\frac{1}{2}}$."}, r"\frac{1}{2}"),
        ("math500", {"problem": "q", "solution": r"\boxed{2}", "answer": "2"}, "2"),
        ("gsm8k", {"question": "q", "answer": "2 * 9 = <<2*9=18>>18\n#### 1,800"}, "1,800"),
        ("minerva", {"problem": "q", "solution": r"\boxed{4.5e33} \mathrm{~erg}"}, "4.5e33"),
        ("minerva", {"question": "q", "answer": "1.6"}, "1.6"),
        ("aime24", {"problem": "q", "solution": "long", "answer": "025"}, "25"),
        ("aime24", {"problem": "q", "solution": r"\boxed{204}"}, "204"),
        ("aime25", {"problem": "q", "answer": r"336^\circ"}, "336"),
        ("amc23", {"question": "q", "answer": 27.0}, "27"),
        ("numina", {"problem": "q", "solution": r"\boxed{1} is wrong. It is \boxed{3}", "messages": []}, "3"),
        ("olympiadbench", OLYMPIAD | {"final_answer": ["$2$"]}, "2"),
        ("olympiadbench", OLYMPIAD | {"final_answer": ["$221,$8$"], "is_multiple_answer": True}, "221, 8"),
        ("olympiadbench", OLYMPIAD | {"final_answer": ["4.2"], "unit": "%", "error": "1e-1"}, "4.2 [unit: %; error: 1e-1]"),
    ],
)
def test_each_benchmark_keeps_its_gold_in_its_own_place(tmp_path: Path, benchmark: str, row: dict, gold: str) -> None:
    assert [(problem.question, problem.gold) for problem in load(tmp_path, benchmark, row)] == [("q", gold)]


def test_the_context_of_an_olympiad_problem_is_part_of_the_question(tmp_path: Path) -> None:
    [problem] = load(tmp_path, "olympiadbench", OLYMPIAD | {"context": "Let $a=1$.", "final_answer": ["1"]})
    assert problem.question == "Let $a=1$.\nq"


def test_rows_without_a_usable_answer_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [r"\boxed{2}", r"\boxed{}", "a proof", r"\boxed{???}"]
    rows = [{"problem": f"q{index}", "solution": answer} for index, answer in enumerate(answers)]
    assert [problem.gold for problem in load(tmp_path, "math", *rows)] == ["2"]
    said = capsys.readouterr().out
    assert "left out 2 rows without an answer: 2, 3" in said and "1 rows with a gold that cannot be read: 4" in said


def test_a_missing_column_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 1: no column 'question'; it has text, answer"):
        load(tmp_path, "gsm8k", {"text": "q", "answer": "#### 1"})


def test_magnitudes_of_minerva_are_read_in_every_notation_and_kept_apart() -> None:
    if not DATA.is_dir():
        pytest.skip(f"the benchmarks are not here: {DATA}")
    lines = (DATA / "minerva_math.jsonl").read_text("utf-8").splitlines()
    every = [BENCHMARKS["minerva"].gold(json.loads(line)) for line in lines]
    golds = [gold for gold in every if re.fullmatch(r"-?[\d.]+e-?\d+", gold)]
    assert len(golds) == 58
    times = [gold.replace("e", r" \times 10^{") + "}" for gold in golds]
    dots = [gold.replace("e", r" \cdot 10^") for gold in golds]
    grader = Grader(RewardConfig())
    for answers in (golds, times, dots):
        assert all(grade.outcome is Outcome.CORRECT for grade in grader.grade(list(zip(answers, golds, strict=True))))
    doubled = [str(2 * float(gold)) for gold in golds]
    for answers in (doubled, ["0.0"] * len(golds)):
        assert not any(grade.outcome is Outcome.CORRECT for grade in grader.grade(list(zip(answers, golds, strict=True))))
    assert grader.pool.workers == []
