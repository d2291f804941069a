import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srl.config import RewardConfig
from srl.reward.answer import last_boxed, stated_answer
from srl.reward.compare import decide
from srl.reward.gold import read_gold, write_gold
from srl.reward.grader import Grader, plain_grade
from srl.reward.pool import Comparison
from srl.reward.rules import apply_grades, final_outcome, grade_request
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind
from tests.pairs import pairs

VERIFIER = Path(__file__).parents[2] / "shared" / "verifier"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader(RewardConfig(deadline_s=20))
    yield grader
    grader.close()


def grade(grader: Grader, answer: str | None, gold: str) -> Outcome | None:
    return grader.grade([(answer, gold)])[0].outcome


def rows(name: str) -> list[dict]:
    if not VERIFIER.is_dir():
        pytest.skip(f"labelled cases are not here: {VERIFIER}")
    return [json.loads(line) for line in (VERIFIER / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("answer", "gold"),
    pairs(r"""
    18.                  | 18
    042                  | 42
    27                   | 27.0
    1,234                | 1234
    4.5 \times 10^{33}   | 4.5e33
    4.5 \cdot 10^{33}    | 4.5e33
    1e-5                 | 0.00001
    \frac{1}{2}          | 0.5
    \dfrac{2}{4}         | 1/2
    2\sqrt{3}            | \sqrt{12}
    x = 5                | 5
    5, 3                 | 3,5
    336                  | 336^\circ
    28\%                 | 28
    42 \text{ units}     | 42
    \text{Friday}        | \text{Friday}
    $x+1$                | 1+x
    40_{9}               | 40_9
    c + a + b            | a + b + c
    \sin^{2} t           | \sin^2 t
    E                    | \text{(E)}
    4:30 PM              | \text{4:30 p.m.}
    \text{June 20th}     | June 20
    \$15,000             | 15000
    \frac{25}{13}        | 1\frac{12}{13}
    0.\overline{3}       | \frac{1}{3}
    3pi/4                | \frac{3\pi}{4}
    x**2 + sin(x)        | \sin x + x^2
    \le 5                | \leq 5
    \big( 1, 2 \big)     | (1,2)
    C, B                 | \text{B,C}
    \text{B and C}       | \text{B, C}
    \frac12 + \frac32 i  | \frac{1+3i}{2}
    1 + 2 \cdot i        | 1+2i
    z = 1 + 2 i          | z=1+2i
    z = 1 + 2 i          | 1+2i
    x + 2 i y            | x+2iy
    \sqrt{2}e^{i\pi/4}   | 1+i
    (1, 2 i)             | (1,2i)
    1 \leq i \le 5       | 1 \le i \le 5
    2.5 million          | 2500000
    5,000,000            | 5\text{ million}
    \$15{,}000           | \$15 \text{ thousand}
    \frac{7}{6}          | 1.1\overline{6}
    \langle 1, 2 \rangle | (1,2)
    \varnothing          | \emptyset
    \{\}                 | ∅
    3 x 10^8             | 3e8
    2 3/4                | \frac{11}{4}
    2.75                 | 2 3/4
    -1 1/2               | -\frac{3}{2}
    66\frac{2}{3}\%      | \frac{200}{3}\%
    15.975               | \frac{639}{40}
    x_1 = 0.5            | \frac{1}{2}
    42                   | \theta=42
    11\sqrt2             | 11\sqrt{2}
    5 \text{ units squared} | 5
    3 \text{ times}      | 3
    3 \text{ more}       | 3
    \sqrt2 \approx 1.41  | \sqrt{2}
    \sqrt{2} ≈ 1.414     | \sqrt{2}
    x = \frac{2}{3} \approx 0.67 | \frac{2}{3}
    x \approx 1.41       | 1.41
    x = 2 + 3 = 5        | 5
    1\frac12 = 1.5       | \frac{3}{2}
    \frac\pi4 - \sqrt{2} | -\sqrt{2} + \frac{\pi}{4}
    80\,\%               | 80\%
    1,~2                 | 1,2
    6\,+\,8i,\; 6+17i    | 6 + 8i, 6 + 17i
    12\,345,\, 7         | 7, 12345
    x<3                  | (-\infty,3)
    3 \leq x             | x \in [3,\infty)
    2 \ge x > 1          | (1,2]
    -1 < x < \frac12     | \left(-1,\frac{1}{2}\right)
    x<1 \text{ or } x>3  | (-\infty,1)\cup(3,\infty)
    \{x \mid x \neq 3\}  | (-\infty,3)\cup(3,\infty)
    \text{all real numbers} | (-\infty,\infty)
    \text{True}          | true
    \text{undefined}     | undefined
    paris                | Paris
    """)
    + [("1" * 5000, "1" * 5000)],
)
def test_equal_answers_are_correct(grader: Grader, answer: str, gold: str) -> None:
    assert grade(grader, answer, gold) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold"),
    pairs(r"""
    -42                        | 42
    −42                        | 42
    42.0000004                 | 42
    999999999998               | 999999999999
    0.0000002                  | 0.0000001
    0                          | 6.67 \times 10^{-11}
    2 \times 10^{-24}          | 1e-24
    \frac{1}{2^{98}}           | \frac{1}{2^{99}}
    \frac{1}{2006!}            | \frac{1}{2004!}
    0 = 42                     | 42
    43, 42                     | 42
    (5,3)                      | (3,5)
    y=5                        | x=5
    x=6                        | 5
    x=0.33                     | \frac{1}{3}
    0.28                       | 28
    < 5                        | 5
    \neq 5                     | 5
    5                          | \geq 5
    sin(x)                     | \cos x
    B                          | \text{B,C}
    A, B, C                    | \text{B,C}
    \frac12 - \frac32 i        | \frac{1+3i}{2}
    5 i                        | 5
    i                          | -i
    5 \text{ million}          | 5
    5                          | 5 \text{ million}
    4 factorial                | 4
    \langle 1,2 \rangle        | 1.2
    1.2                        | \langle 1,2\rangle
    \langle 2,1\rangle         | \langle 1,2\rangle
    0.\overline{3}             | 0.33
    \{0\}                      | \varnothing
    2 3/4                      | \frac{5}{4}
    5/4                        | 2 3/4
    2 3/4                      | \frac{23}{4}
    \frac{2}{3}\%              | 66\frac{2}{3}\%
    40_8                       | 40_9
    -221_4                     | -221_3
    0.0011_{22}                | 0.0011_2
    \frac \pi14 + 2            | \frac \pi4 + 2
    \frac{1}{0}                | \frac{1}{2}
    (-\infty,13)\cup(3,\infty) | (-\infty,3)\cup(3,\infty)
    \text{(D)}                 | \text{(E)}
    x \in [-2,9]               | x \in [-2,7]
    a b = 2, c                 | a b = 3, c
    4:30 a.m.                  | \text{4:30 p.m.}
    June 21                    | June 20
    20                         | June 20
    \$15,000                   | \$16,000
    x \le 3                    | (-\infty,3)
    x > 3                      | (-\infty,3)
    1 < x < 2                  | [1,2]
    x<1 \text{ or } x>3        | (-\infty,1)\cup(4,\infty)
    x<1 \text{ or } y>3        | (-\infty,1)\cup(3,\infty)
    x+1 < 4                    | (-\infty,3)
    \{x \mid x+1 < 4\}         | (-\infty,3)
    false                      | true
    5                          | true
    raisP                      | Paris
    5 \text{ squared}          | 5
    5 \text{ dozen}            | 5
    \frac{5}{2} \text{ thirds} | \frac{5}{2}
    5 \text{ plus one}         | 5
    5 \text{ (or 6)}           | 5
    \sqrt{3} \text{ or so}     | \sqrt{3}
    \sqrt{3} \text{ not } 2    | \sqrt{3}
    17 \not= 23                | 23
    \neg 5                     | 5
    \sqrt2 \approx 1.514       | \sqrt{2}
    5 \approx 7                | 5
    x = 5 = 6                  | 6
    x = \sqrt{2} = \sqrt{3}    | \sqrt{3}
    y = 1, x = 2 = 3           | 1, 3
    """),
)
def test_different_answers_are_incorrect(grader: Grader, answer: str, gold: str) -> None:
    assert grade(grader, answer, gold) is Outcome.INCORRECT


BETWEEN = [
    *(",", ";", " ", "\n", " or ", ", x=", "=x=", "$, $", "/", ":", "=", "<", "|", "(", "}{", "..."),
    *(r"\\", r"\,", r"\quad ", r"\approx ", r"\to ", r"\Rightarrow ", r"\lor ", r"\cup ", r"\pm ", r"\ldots "),
    *(rf" \text{{ {word}}} " for word in ("or", "and", "(or maybe", "is wrong,", "not")),
]
AROUND = [
    "{0}{2}{1}",
    "x={0}{2}x={1}",
    "({0}{2}{1})",
    r"\{{{0}{2}{1}\}}",
    r"\text{{{0}{2}{1}}}",
    r"\boxed{{{0}}}{2}\boxed{{{1}}}",
]


@pytest.mark.parametrize(("one", "other"), [("7", "13"), (r"\frac{3}{7}", r"\sqrt{2}")])
def test_two_answers_in_whatever_form_are_never_right_for_both(grader: Grader, one: str, other: str) -> None:
    forms = [around.format(one, other, between) for around in AROUND for between in BETWEEN]
    grades = grader.grade([(form, gold) for form in forms for gold in (one, other)])
    right = [grade.outcome is Outcome.CORRECT for grade in grades]
    assert not [form for form, first, second in zip(forms, right[::2], right[1::2], strict=True) if first and second]
    assert 0 < sum(right) < len(forms)  # the last of what is said counts


@pytest.mark.parametrize("gold", [r"\textbf{(B)}\ 12", r"\mathrm{(B)} 12", r"\textbf{(B) }12", r"(\text{B})\quad 12", "(B) 12"])
def test_of_a_choice_the_letter_or_the_value_is_enough(grader: Grader, gold: str) -> None:
    assert grader.invalid_golds([gold]) == {}
    for answer in ("B", "(B)", r"\text{(B)}", "12", "12.0", r"\textbf{(B)}\ 12"):
        assert grade(grader, answer, gold) is Outcome.CORRECT, answer
    for answer in ("C", r"\text{C}", "13", r"\textbf{(C)}\ 12", "A, B", r"\textbf{(B)} \text{ or } \textbf{(C)}", "12B"):
        assert grade(grader, answer, gold) is not Outcome.CORRECT, answer


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\textbf{(C)}\ \frac{1}{2}", "0.5", True),
        (r"\textbf{(C)}\ \frac{1}{3}", "0.5", False),
        (r"\textbf{(B)}\ 12", "B", True),
        (r"\text{None of these}", r"\textbf{(D)}\ \text{none of these}", True),
        ("1+x^2", r"\textbf{(E)}\ x^2+1", True),
        ("x^2-1", r"\textbf{(E)}\ x^2+1", False),
        ("(A)(B)", "AB", True),
        ("(A) x", "A x", True),
    ],
)
def test_letter_and_value_are_compared_with_what_the_other_side_gives(grader, answer: str, gold: str, right: bool) -> None:
    assert (grade(grader, answer, gold) is Outcome.CORRECT) is right


def test_other_outcomes_keep_their_causes_apart(grader: Grader) -> None:
    assert grade(grader, None, "42") is Outcome.NO_ANSWER
    assert grade(grader, " $ ", "42") is Outcome.NO_ANSWER
    assert grade(grader, "???", "42") is Outcome.UNPARSABLE
    assert grade(grader, "9^{9^{9^{9}}}", "42") is Outcome.UNPARSABLE
    assert grade(grader, "1000000!", "42") is Outcome.UNPARSABLE


@pytest.mark.parametrize("gold", ["", "$$", "???", "17+", "9^{9^{9}}", "4 [error: some]"])
def test_a_gold_that_does_not_parse_is_named(grader: Grader, gold: str) -> None:
    [found] = grader.grade([("x", gold)])
    assert found.outcome is None and repr(gold)[1:-1] in found.message
    assert grader.invalid_golds([gold, "42"]) == {gold: found.message}


@pytest.mark.parametrize(
    ("answer", "unit", "error", "right"),
    [
        ("45 minutes", "minute", None, True),
        (r"45 \text{ min}", "minute", None, True),
        ("45", "minute", None, True),
        (r"45 \text{ hours}", "minute", None, False),
        ("44", "minute", None, False),
        ("44.9", "minute", "1e-1", True),
        ("44.8", "minute", "1e-1", False),
        (r"45\%", "%", None, True),
        (r"45 \mathrm{~km} / \mathrm{h}", "km/h", None, True),
        (r"45 \text{ square cm}", "$cm^2$", None, True),
        (r"45^{\circ}", r"^{\circ}", None, True),
    ],
)
def test_the_gold_says_which_unit_and_which_error(grader: Grader, answer: str, unit: str, error: str | None, right: bool) -> None:
    gold = write_gold("45", unit, error)
    assert read_gold(gold) == ("45", unit, float(error or 0))
    assert (grade(grader, answer, gold) is Outcome.CORRECT) is right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("2500, 7500", "7500, 2500", True),
        ("100,200", "200, 100", True),
        (r"\{3, 1\}", "1, 3", True),
        (r"3 \text{ and } 1", "1, 3", True),
        ("1", "1, 3", False),
        ("1, 1", "1, 3", False),
        (r"\sqrt{2}, \frac{1}{2}", r"\frac{1}{2}, \sqrt{2}", True),
        (r"\sqrt{2}, \frac{1}{3}", r"\frac{1}{2}, \sqrt{2}", False),
        ("(3,4), (1,2)", "(1,2), (3,4)", True),
        ("(2,1), (3,4)", "(1,2), (3,4)", False),
        (r"\frac{-1\pm\sqrt{5}}{2}", r"\frac{-1-\sqrt{5}}{2}, \frac{-1+\sqrt{5}}{2}", True),
        (r"\frac{1+\sqrt{5}}{2}, \frac{1-\sqrt{5}}{2}", r"\frac{1\pm\sqrt{5}}{2}", True),
        (r"x=\frac12\pm\frac{\sqrt5}{2}", r"\frac{1\pm\sqrt{5}}{2}", True),
        (r"3, \frac{1\pm\sqrt{5}}{2}", r"\frac{1+\sqrt{5}}{2}, \frac{1-\sqrt{5}}{2}, 3", True),
        (r"\frac{1+\sqrt{5}}{2}", r"\frac{1\pm\sqrt{5}}{2}", False),
        (r"\frac{1\pm\sqrt{6}}{2}", r"\frac{1\pm\sqrt{5}}{2}", False),
    ],
)
def test_several_answers_match_one_to_one_in_any_order(grader: Grader, answer: str, gold: str, right: bool) -> None:
    assert (grade(grader, answer, gold) is Outcome.CORRECT) is right


def test_plain_numbers_need_no_process_and_repeats_no_second_comparison() -> None:
    grader = Grader(RewardConfig())
    assert [g.outcome for g in grader.grade([("42", "42"), ("43", "42"), (r"\frac{2}{4}", "1/2")])][1] is Outcome.INCORRECT
    assert grader.pool.workers == [] and grader.cached == 0
    grader.grade([("42", "42"), ("42", "42")])
    assert grader.cached == 2


def test_a_grader_that_gets_a_known_case_wrong_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(RewardConfig())
    monkeypatch.setattr("srl.reward.grader.GOLDEN", [("43", "42", Outcome.CORRECT)])
    with pytest.raises(RuntimeError, match="graded answer '43' for gold '42' as incorrect, expected correct"):
        grader.prove()


@pytest.mark.parametrize(
    "piece", ["°", r"^{\circ}", r"\text{ km}", "5 km ", r"\%", "1,", "(", r"\frac{1}", "2 3/4 ", "x=", r"\cup(1,2)"]
)
def test_what_is_decided_before_algebra_has_no_deadline_and_needs_none(piece: str) -> None:
    for gold in ("5", "(1,2)", "5 [unit: km/h]"):
        start = time.process_time()
        plain_grade((piece * 2000)[:2000], gold)
        assert time.process_time() - start < 2  # three hundred degree signs took seconds, two thousand minutes


def test_timeouts_are_not_remembered() -> None:
    grader = Grader(RewardConfig(processes=1, deadline_s=0.5))
    slow = (r"\sum_{k=1}^{9999} k^{k}", "42")
    for _ in range(2):
        assert grader.grade([slow])[0].outcome is Outcome.TIMEOUT
    assert grader.cached == 0
    grader.close()


def test_threads_and_event_loops_get_the_same_grades(grader: Grader) -> None:
    pairs = [(rf"\frac{{{n}}}{{4}}+y", rf"y+{n}/{4 + n % 2}") for n in range(1, 9)]
    expected = [Outcome.CORRECT if n % 2 == 0 else Outcome.INCORRECT for n in range(1, 9)]
    found: dict[str, list] = {}

    def grade_in(name: str) -> None:
        grader.cache.clear()
        found[name] = [grade.outcome for grade in grader.grade(pairs)]

    async def grade_in_loop() -> None:
        grade_in("loop")

    threads = [threading.Thread(target=grade_in, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asyncio.run(grade_in_loop())
    assert found == {"one": expected, "two": expected, "loop": expected}


def test_what_is_decided_without_algebra_is_what_algebra_says(grader: Grader) -> None:
    kinds = [
        "{a}",
        "{a}.5",
        r"\frac{{{a}}}{{{b}}}",
        "x = {a}",
        "x={a}.5",
        r"x = \frac{{{a}}}{{{b}}}",
        "y = {a}",
        "2x = {a}",
        "x^2 = {a}",
    ]
    kinds += [
        "({a},{b})",
        "[{a},{b})",
        "({a},00{b})",
        r"\{{{a}, {b}\}}",
        "{a}, {b}",
        "x > {a}",
        r"x \geq {a}",
        "{a} < x",
        r"{a}\%",
    ]
    kinds += [
        r"{a}\sqrt{b}",
        r"\lfloor \frac{{{a}}}{{{b}}} \rfloor",
        r"\log_{{2}} {a}",
        r"\text{{no}}",
        r"\text{{A, B}}",
        "2^{a}",
    ]
    kinds += [r"\angle A B C = {a}", r"\angle A C B = {a}", "f(x) = x+{a}", "x+{a}", "y = x+{a}", "x + 2y = {a}", "x={a}, y={b}"]
    rng, decided = random.Random(0), {}
    while len(decided) < 200:
        answer, gold = (rng.choice(kinds).format(a=rng.randint(1, 2), b=rng.randint(1, 2)) for _ in range(2))
        outcome, left = decide(answer, read_gold(gold))
        if outcome is not None and (answer, gold) not in decided:
            decided[answer, gold] = outcome, Comparison(left, read_gold(gold).answer)
    replies = grader.pool.compare([comparison for _, comparison in decided.values()])
    for (pair, (outcome, _)), reply in zip(decided.items(), replies, strict=True):
        assert (outcome is Outcome.CORRECT) is (reply.outcome is Outcome.CORRECT), pair


def test_the_grader_agrees_with_the_labelled_cases(grader: Grader, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [case for case in rows("cases.jsonl") if not case.get("flag")]
    grades = grader.grade([(stated_answer(case["prediction"]), case["gold"]) for case in cases])
    found = [grade.outcome is Outcome.CORRECT for grade in grades]
    wrong = [case for case, right in zip(cases, found, strict=True) if right is not case["expected"]]
    accepted = [case["id"] for case in wrong if not case["expected"]]
    agreement = 1 - len(wrong) / len(cases)
    with capsys.disabled():
        print(f"\nagreement {agreement:.4f} on {len(cases)} cases; wrongly accepted {accepted}", end="; wrongly refused ")
        print([case["id"] for case in wrong if case["expected"]])
    assert agreement >= 0.985 and len(accepted) <= 2


@pytest.mark.parametrize("extract", [last_boxed, stated_answer])
def test_no_attack_is_accepted_or_takes_more_processor_time_than_the_deadline(extract: Callable[[str], str | None]) -> None:
    deadline_s, cases = 2.0, rows("adversarial.jsonl")
    grader = Grader(RewardConfig(deadline_s=deadline_s))
    grader.pool.warm()
    grader.prove()
    for case in cases:
        own, before = time.process_time(), processor_seconds(grader)
        outcome = grade(grader, extract(case["text"]), case["gold"])
        after = processor_seconds(grader)
        assert time.process_time() - own < 1, case["id"]
        # The kernel has seen to those that are gone.
        assert all(after[pid] - before[pid] < deadline_s + 1 for pid in before.keys() & after.keys()), case["id"]
        assert case["expected"] is not False or outcome is not Outcome.CORRECT, case["id"]
    grader.prove()
    assert len(grader.pool.workers) == 2
    grader.close()


def processor_seconds(grader: Grader) -> dict[int, float]:
    """Used by the grader's processes, by their ids."""
    found = {}
    for worker in grader.pool.workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        found[worker.pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def trajectory(*turns: Turn) -> Trajectory:
    return Trajectory("t", "p", "What is 6 * 7?", "42", [1], list(turns))


def test_answers_are_graded_by_id_and_the_final_one_decides_the_reward(grader: Grader) -> None:
    attempt, revision = Turn(TurnKind.ATTEMPT, [2], answer="41"), Turn(TurnKind.REVISION, [4], answer="42")
    graded = trajectory(attempt, Turn(TurnKind.VERDICT, [3]), revision)
    requests = grade_request(graded)
    assert requests == [("t/0", "41", "42"), ("t/2", "42", "42")]
    with pytest.raises(ValueError, match="t: its final answer was not graded"):
        final_outcome(graded)
    apply_grades([graded], {request_id: grade(grader, answer, gold) for request_id, answer, gold in requests})
    assert [turn.outcome for turn in graded.turns] == [Outcome.INCORRECT, None, Outcome.CORRECT]
    assert final_outcome(graded) == 1.0
    assert final_outcome(trajectory()) == 0.0
    with pytest.raises(KeyError, match="t/2"):
        apply_grades([graded], {"t/0": Outcome.INCORRECT})
