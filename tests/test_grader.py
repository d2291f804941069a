import json
import re
import threading
from pathlib import Path

import pytest

from srl.reward.answer import last_boxed
from srl.reward.grader import check_gold, grade
from srl.reward.rules import apply_grades, final_outcome, grade_request
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind

CASES = Path(__file__).parents[2] / "shared" / "verifier" / "cases.jsonl"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("18.", "18"),
        ("042", "42"),
        ("27", "27.0"),
        ("1,234", "1234"),
        (r"4.5 \times 10^{33}", "4.5e33"),
        (r"4.5 \cdot 10^{33}", "4.5e33"),
        ("1e-5", "0.00001"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac{2}{4}", "1/2"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("x = 5", "5"),
        ("5, 3", "3,5"),
        ("336", r"336^\circ"),
        (r"28\%", "28"),
        (r"42 \text{ units}", "42"),
        (r"\text{Friday}", r"\text{Friday}"),
        ("$x+1$", "1+x"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_equal_answers_are_correct(answer: str, gold: str) -> None:
    assert grade(answer, gold) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("-42", "42"),
        ("−42", "42"),
        ("42.0000004", "42"),
        ("999999999998", "999999999999"),
        ("0.0000002", "0.0000001"),
        ("0", r"6.67 \times 10^{-11}"),
        (r"2 \times 10^{-24}", "1e-24"),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
        ("0 = 42", "42"),
        ("43, 42", "42"),
        ("(5,3)", "(3,5)"),
        ("y=5", "x=5"),
        ("0.28", "28"),
    ],
)
def test_different_answers_are_incorrect(answer: str, gold: str) -> None:
    assert grade(answer, gold) is Outcome.INCORRECT


def test_other_outcomes_keep_their_causes_apart() -> None:
    assert grade(None, "42") is Outcome.NO_ANSWER
    assert grade(" $ ", "42") is Outcome.NO_ANSWER
    assert grade("???", "42") is Outcome.UNPARSABLE
    assert grade("9^{9^{9^{9}}}", "42") is Outcome.UNPARSABLE
    assert grade("1000000!", "42") is Outcome.UNPARSABLE


def test_an_answer_that_takes_too_long_is_a_timeout() -> None:
    assert grade(r"\sum_{k=1}^{9999} k^{k}", "42", timeout_s=1) is Outcome.TIMEOUT


@pytest.mark.parametrize("gold", ["", "$$", "???", "17+", "9^{9^{9}}"])
def test_a_gold_that_does_not_parse_is_named(gold: str) -> None:
    for call in (lambda: check_gold(gold), lambda: grade("x", gold)):
        with pytest.raises(ValueError, match=re.escape(repr(gold))):
            call()


def test_off_the_main_thread_grading_says_so_instead_of_grading() -> None:
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            grade("42", "42")
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(30)
    assert "main thread" in str(caught[0])


def test_fractions_of_a_second_are_refused() -> None:
    with pytest.raises(ValueError, match="timeout_s=0.5"):
        grade("1", "2", timeout_s=0.5)  # type: ignore[arg-type]


def answer_in(text: str) -> str:
    """The last box; the suite also has other ways of answering, which a reward does not accept: isolate those here."""
    patterns = [r"<answer>(.*?)</answer>", r"final answer is\s*(.+?)\.?\s*(?:I hope|$)", r"^A: (.+)$"]
    patterns += [r"(?:answer is|answer):?\**\s*(.+?)(?:<\||$)", r"\$([^$]+)\$"]
    found = (re.findall(pattern, text, re.MULTILINE | re.IGNORECASE) for pattern in patterns)
    boxed = last_boxed(text)
    return boxed if boxed is not None else next((match[-1] for match in found if match), text)


def gold_in(text: str) -> str:
    boxed = last_boxed(text)
    return boxed if boxed is not None else re.sub(r"^(?:the )?answer is ", "", text, flags=re.IGNORECASE)


def accepted(case: dict[str, str]) -> bool:
    """Three golds of the suite are empty or do not parse; nothing equals them."""
    try:
        return grade(answer_in(case["prediction"]), gold_in(case["gold"])) is Outcome.CORRECT
    except ValueError:
        return False


def test_the_grader_agrees_with_the_labelled_cases(capsys: pytest.CaptureFixture[str]) -> None:
    if not CASES.is_file():
        pytest.skip(f"labelled cases are not here: {CASES}")
    cases = [case for case in map(json.loads, CASES.read_text().splitlines()) if not case.get("flag")]
    wrong = [case for case in cases if accepted(case) is not case["expected"]]
    false_accepts = sum(not case["expected"] for case in wrong)
    agreement = 1 - len(wrong) / len(cases)
    with capsys.disabled():
        print(f"\nagreement {agreement:.4f} on {len(cases)} cases: {false_accepts} wrongly accepted, ", end="")
        print(f"{len(wrong) - false_accepts} wrongly refused; ids", *(case["id"] for case in wrong))
    assert agreement >= 0.97


def trajectory(*turns: Turn) -> Trajectory:
    return Trajectory("t", "p", "What is 6 * 7?", "42", [1], list(turns))


def test_answers_are_graded_by_id_and_the_final_one_decides_the_reward() -> None:
    attempt, revision = Turn(TurnKind.ATTEMPT, [2], answer="41"), Turn(TurnKind.REVISION, [4], answer="42")
    graded = trajectory(attempt, Turn(TurnKind.VERDICT, [3]), revision)
    requests = grade_request(graded)
    assert requests == [("t/0", "41", "42"), ("t/2", "42", "42")]
    with pytest.raises(ValueError, match="t: its final answer was not graded"):
        final_outcome(graded)
    apply_grades([graded], {request_id: grade(answer, gold) for request_id, answer, gold in requests})
    assert [turn.outcome for turn in graded.turns] == [Outcome.INCORRECT, None, Outcome.CORRECT]
    assert final_outcome(graded) == 1.0
    assert final_outcome(trajectory()) == 0.0
    with pytest.raises(KeyError, match="t/2"):
        apply_grades([graded], {"t/0": Outcome.INCORRECT})
