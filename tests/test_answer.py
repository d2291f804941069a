import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.reward.answer import gold_answer, last_boxed, stated_answer

PLAIN = st.text(st.characters(blacklist_characters="{}\\", blacklist_categories=("Cs",)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{42}", "42"),
        (r"\\boxed{840}", "840"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed{42}}}}", "42"),
        (r"\boxed{41} Wait. The answer is \boxed{42}", "42"),
        (r"\boxed{42} and then \boxed{43", "42"),
        (r"\boxed{43 is not closed, \boxed{42}", "42"),
        (r"\boxed{42", None),
        (r"\boxed 42", None),
        ("no box at all 42", None),
        (r"<think>\boxed{41}</think> It is \boxed{42}", "42"),
        (r"<think>\boxed{42}</think> Done.", None),
    ],
)
def test_the_last_balanced_box_after_thinking_is_the_answer(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    "between",
    [", ", " ", " and ", ", and ", " or ", r"\quad", r"\text{ and }", r"$ and $", r"\) and \(", r"\) and \(y_2 = ", ", x = "]
    + [r"\text{ for part (a) and }", " for (a), and "],
)
def test_adjacent_boxes_are_one_answer(between: str) -> None:
    assert last_boxed(rf"x is \boxed{{1}}{between}\boxed{{2}}.") == "1, 2"


def test_boxes_apart_and_repeated_boxes_are_not_joined() -> None:
    assert last_boxed("\\boxed{1}\n\\boxed{2}") == "2"
    assert last_boxed(r"\boxed{2}, \boxed{2}") == "2"
    assert last_boxed(r"\boxed{43}. Wait, that is wrong. The answer is \boxed{42}") == "42"
    assert last_boxed(r"\boxed{43}, so \boxed{42}") == "42"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{42}\n[VERIFY] correct", "42"),
        (r"\boxed{42} \boxed{\text{[VERIFY] wrong.}}", "42"),
        (r"\boxed{42} [VERIFY] \boxed{correct}", "42"),
        (r"\boxed{42} [VERIFY] the answer \boxed{43} is wrong", "42"),
        (r"\boxed{42} Is my most recent final answer correct (Yes or No)? \boxed{Yes}.", "42"),
        ("\\boxed{41}\n[VERIFY] wrong\nc = 42, so \\boxed{42}", "42"),
        (r"[VERIFY] \boxed{wrong}", None),
        (r"\boxed{42} \boxed{\text{Is my most recent final answer correct (Yes or No)? No.}}", "42"),
    ],
)
def test_a_box_in_a_verdict_is_not_an_answer(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@given(PLAIN, PLAIN, PLAIN)
def test_what_is_boxed_comes_back_as_it_was(before: str, content: str, after: str) -> None:
    if "</think>" not in before + content + after and "VERIFY" not in (before + content).upper():
        assert last_boxed(f"{before} \\boxed{{{content}}} {after}") == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is 41. \boxed{42}", "42"),
        ("<reasoning>41</reasoning><answer> 42 </answer>", "42"),
        ("Final Answer: The final answer is $6\\sqrt{3}$. I hope it is correct.", r"6\sqrt{3}"),
        ("Answer: 41 was a wrong guess.\nAnswer: 42", "42"),
        ("Answer \\[ \n 9 \n \\]", "9"),
        ("6 + 1 = <<6+1=7>>7\nA: 7", "7"),
        ("6 + 1 = 7\n#### 7", "7"),
        ("The answer is: she was 7 hours late", "7"),
        ("Thus $x <= 2$ holds.", "x <= 2"),
        ("We add them, and so the chance that she wins is 2/3.", "2/3"),
        ("x = 3", "x = 3"),
        ("<think>The answer is 42</think> Some other text without any.", None),
        ("I do not know. Here are numbers: 40 41 42", None),
        ("partial: 42, but the final result depends on x", None),
        ("", None),
    ],
)
def test_without_a_box_only_what_is_stated_is_an_answer(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize("gold", ["18", r"so \boxed{18}", "9 * 2 = 18\n#### 18", "The answer is $18$."])
def test_golds_come_in_the_forms_of_their_benchmarks(gold: str) -> None:
    assert gold_answer(gold) == "18"


@pytest.mark.parametrize(
    "piece",
    ["\\[", "$", "\\(x", r"\boxed{1} ", "[VERIFY] ", "[VERIFY] correct\n", "the answer is ", r"\boxed{", "{", "is 1", "A:"],
)
def test_long_responses_are_read_in_time(piece: str) -> None:
    start = time.process_time()
    last_boxed(piece * 20_000)
    stated_answer(piece * 20_000)
    assert time.process_time() - start < 10  # patterns that are quadratic take minutes


PIECES = ["\\boxed{", "{", "}", "\\", "[VERIFY]", ",", " and ", "e", "x", ".", "$", "(", ")", "\n", "9", "answer is", "</think>"]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_nothing_written_by_a_model_raises(text: str) -> None:
    last_boxed(text)
    stated_answer(text)
    gold_answer(text)
