import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.protocols.grammar import GRAMMARS, cut_chain, only_verdict
from srl.trajectory import TurnKind, Verdict

A, V, R = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION
CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG
ASK = "Is my most recent final answer correct (Yes or No)?"


def cut(text: str, grammar: str = "verify") -> list[tuple]:
    """(kind, its text, what it says: verdict or answer)."""
    return [(s.kind, text[s.start : s.end], s.verdict if s.kind is V else s.answer) for s in cut_chain(text, grammar)]


@pytest.mark.parametrize(
    ("grammar", "text", "verdict"),
    [
        ("verify", "7 + 8 = 15, 85 yes. [VERIFY] correct", CORRECT),
        ("verify", "[VERIFY] wrong.", WRONG),
        ("verify", "[verify]  Correct", CORRECT),
        ("verify", r"\boxed{\text{[VERIFY] wrong.}}", WRONG),
        ("verify", r"\boxed{[VERIFY] correct}", CORRECT),
        ("yes_no", f"{ASK} Yes", CORRECT),
        ("yes_no", f"{ASK}\nNo.", WRONG),
        ("yes_no", rf"{ASK} \boxed{{\text{{No}}}}", WRONG),
        ("verify", r"[VERIFY] \boxed{\textbf{wrong}}.", WRONG),
        ("verify", r"$\boxed{[VERIFY] correct.}$", CORRECT),
        ("verify", "[VERIFY]: **correct**. I checked every step.", CORRECT),
        ("verify", r"\fbox{[VERIFY] wrong}, as 2 + 2 is 4", WRONG),
        ("yes_no", rf"\boxed{{{ASK} Yes}}", CORRECT),
        ("yes_no", f"**{ASK}** **No.** The sum is off.", WRONG),
    ],
)
def test_a_verdict_is_read_in_each_of_its_spellings(grammar: str, text: str, verdict: Verdict) -> None:
    assert only_verdict(text, grammar) is verdict


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ("verify", "The solution is correct."),  # no marker
        ("verify", "[VERIFY] maybe"),
        ("verify", "[VERIFY] wrongly said"),  # another word
        ("verify", "[VERIFY] correct [VERIFY] wrong"),  # two markers
        ("verify", "[VERIFY] wrong [VERIFY] wrong"),  # two markers that agree are still not one
        ("verify", "I will end with [VERIFY]. 7 + 8 is 15. [VERIFY] wrong"),  # two markers, one of them without a word
        ("verify", f"{ASK} Yes"),  # the other grammar
        ("yes_no", "[VERIFY] correct"),
        ("yes_no", "Yes"),
        ("yes_no", f"{ASK} Not sure"),
        ("yes_no", f"{ASK} Yes {ASK} No"),
        ("verify", ""),
    ],
)
def test_anything_but_exactly_one_marker_is_no_verdict(grammar: str, text: str) -> None:
    assert only_verdict(text, grammar) is None


def test_an_attempt_without_a_marker_is_one_turn_with_its_last_box() -> None:
    text = "(1) + 38 = 85. The answer is \\boxed{85}"
    assert cut(text) == [(A, text, "85")]
    assert cut("no box at all") == [(A, "no box at all", None)]
    assert cut("") == [(A, "", None)]


def test_a_verified_chain_is_attempt_and_verdict_and_the_check_belongs_to_the_verdict() -> None:
    assert cut("so \\boxed{85}\n7 + 8 = 15, 85 yes. [VERIFY] correct") == [
        (A, "so \\boxed{85}", "85"),
        (V, "\n7 + 8 = 15, 85 yes. [VERIFY] correct", CORRECT),
    ]


def test_the_rest_of_the_line_of_the_box_belongs_to_the_answer() -> None:
    assert cut("$\\boxed{85}$, done.\n[VERIFY] wrong")[0] == (A, "$\\boxed{85}$, done.", "85")


def test_without_a_line_end_the_answer_ends_with_its_box() -> None:
    assert cut("\\boxed{\\frac{1}{2}} check [VERIFY] correct") == [
        (A, "\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        (V, " check [VERIFY] correct", CORRECT),
    ]


@pytest.mark.parametrize("matrix", ["\\boxed{\n5}", "\\boxed{\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}}", "\\fbox{5}"])
def test_an_answer_has_the_whole_of_its_box_whatever_its_command_and_lines(matrix: str) -> None:
    content = matrix[matrix.index("{") + 1 : -1]
    assert cut(f"so {matrix}.\nno. [VERIFY] wrong\nso {matrix} and\nyes. [VERIFY] correct") == [
        (A, f"so {matrix}.", content),
        (V, "\nno. [VERIFY] wrong", WRONG),
        (R, f"\nso {matrix} and", content),
        (V, "\nyes. [VERIFY] correct", CORRECT),
    ]


def test_an_answer_whose_box_is_never_closed_reaches_to_the_marker() -> None:
    assert cut("so \\boxed{5\nyes. [VERIFY] correct")[0] == (A, "so \\boxed{5\nyes. ", None)


def test_nothing_that_is_thought_is_an_answer_or_a_verdict() -> None:
    thought = "<think>\\boxed{4}\nno. [VERIFY] wrong\n</think>"
    assert cut(f"{thought}so \\boxed{{5}}\nyes. [VERIFY] correct") == [
        (A, f"{thought}so \\boxed{{5}}", "5"),
        (V, "\nyes. [VERIFY] correct", CORRECT),
    ]
    assert cut(f"{thought}so 5. [VERIFY] correct")[0] == (A, f"{thought}so 5. ", None)
    assert cut(f"{thought}so \\boxed{{5}}") == [(A, f"{thought}so \\boxed{{5}}", "5")]
    assert only_verdict(f"{thought}yes. [VERIFY] correct", "verify") is CORRECT


def test_wrong_is_followed_by_a_revision() -> None:
    assert cut("\\boxed{75}\n85 no. [VERIFY] wrong\nso \\boxed{85}") == [
        (A, "\\boxed{75}", "75"),
        (V, "\n85 no. [VERIFY] wrong", WRONG),
        (R, "\nso \\boxed{85}", "85"),
    ]


def test_a_revision_may_lack_its_box() -> None:
    assert cut("\\boxed{75}\n[VERIFY] wrong\nso 85")[2] == (R, "\nso 85", None)


def test_wrong_without_a_revision_ends_with_the_verdict() -> None:
    assert cut("\\boxed{75}\n[VERIFY] wrong\n ") == [(A, "\\boxed{75}", "75"), (V, "\n[VERIFY] wrong\n ", WRONG)]


def test_two_rounds_are_five_turns() -> None:
    text = "\\boxed{1}\n[VERIFY] wrong\n\\boxed{2}\nno, [VERIFY] wrong.\n\\boxed{3}\n[VERIFY] correct"
    assert cut(text) == [
        (A, "\\boxed{1}", "1"),
        (V, "\n[VERIFY] wrong", WRONG),
        (R, "\n\\boxed{2}", "2"),
        (V, "\nno, [VERIFY] wrong.", WRONG),
        (R, "\n\\boxed{3}", "3"),
        (V, "\n[VERIFY] correct", CORRECT),
    ]


def test_chatter_after_correct_belongs_to_the_verdict() -> None:
    assert cut("\\boxed{85}\n[VERIFY] correct. I am done.")[1:] == [(V, "\n[VERIFY] correct. I am done.", CORRECT)]


def test_a_box_after_correct_is_a_revision_all_the_same() -> None:
    # The last box is the final answer, whatever the verdict before it said.
    assert cut("\\boxed{85}\n[VERIFY] correct\n\\boxed{86}")[2] == (R, "\n\\boxed{86}", "86")


def test_a_verdict_before_any_answer_follows_an_empty_attempt() -> None:
    assert cut("[VERIFY] wrong\n\\boxed{85}") == [(A, "", None), (V, "[VERIFY] wrong", WRONG), (R, "\n\\boxed{85}", "85")]


def test_text_without_a_box_before_the_first_verdict_is_the_attempt() -> None:
    assert cut("85 [VERIFY] correct") == [(A, "85 ", None), (V, "[VERIFY] correct", CORRECT)]


def test_a_second_verdict_on_the_same_answer_adds_no_empty_revision() -> None:
    assert cut("\\boxed{85}\n[VERIFY] wrong. Again, [VERIFY] correct") == [
        (A, "\\boxed{85}", "85"),
        (V, "\n[VERIFY] wrong.", WRONG),
        (V, " Again, [VERIFY] correct", CORRECT),
    ]


def test_a_verdict_in_a_box_is_no_answer() -> None:
    assert cut("\\boxed{75}\n\\boxed{\\text{[VERIFY] wrong.}}\nso \\boxed{85}") == [
        (A, "\\boxed{75}", "75"),
        (V, "\n\\boxed{\\text{[VERIFY] wrong.}}", WRONG),
        (R, "\nso \\boxed{85}", "85"),
    ]


def test_the_yes_no_grammar_cuts_the_same_way() -> None:
    assert cut(f"so \\boxed{{75}}\n{ASK} No\n\\boxed{{85}}", "yes_no") == [
        (A, "so \\boxed{75}", "75"),
        (V, f"\n{ASK} No", WRONG),
        (R, "\n\\boxed{85}", "85"),
    ]


PIECES = [
    "\\boxed{85}", "\\boxed{\\frac{1}{2}}", "\\boxed{", "{", "}", "[VERIFY] correct", "[VERIFY] wrong.", "[VERIFY] ", "correct",
    "\\boxed{\\text{[VERIFY] wrong.}}", "[VERIFY] \\boxed{correct}.",
    "**", "$", f"{ASK} **Yes**", f"{ASK} Yes", f"{ASK} No.", "Is my", "\n", " ", "so 85", "é∑",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.sampled_from(list(GRAMMARS)))
def test_segments_cover_any_text_without_gap_or_overlap(text: str, grammar: str) -> None:
    segments = cut_chain(text, grammar)
    assert "".join(text[s.start : s.end] for s in segments) == text
    assert [s.start for s in segments] == [0, *(s.end for s in segments[:-1])]
    assert [s.kind for s in segments].index(A) == 0 and [s.kind for s in segments].count(A) == 1
    assert all(s.end > s.start for s in segments[1:])
    verdicts = [s for s in segments if s.kind is V]
    assert len(verdicts) == len(list(GRAMMARS[grammar].finditer(text))) and all(s.verdict for s in verdicts)
    assert not any(s.verdict for s in segments if s.kind is not V)
    assert not any("[VERIFY]" in s.answer for s in segments if s.answer)
