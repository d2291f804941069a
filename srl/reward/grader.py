"""Grades in batches: what is plain is decided at once, what repeats comes from the cache, the rest goes to worker processes."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from srl.config import RewardConfig
from srl.reward.choice import by_choice, split_choice
from srl.reward.compare import decide
from srl.reward.gold import Gold, read_gold
from srl.reward.pool import Comparison, WorkerPool
from srl.reward.refusals import LONGEST_ANSWER
from srl.reward.spelling import bare_words, plain_fraction, plain_number, values, words
from srl.trajectory import Outcome

CACHED_GRADES = 100_000  # the trajectories of a group repeat each other's answers

# Each of these outcomes has to come out before anything else is graded.
GOLDEN = [
    ("42.", "42", Outcome.CORRECT),
    (r"\frac{1}{2}", "0.5", Outcome.CORRECT),
    (r"4.5 \times 10^{33}", "4.5e33", Outcome.CORRECT),
    (r"2\sqrt{3}", r"\sqrt{12}", Outcome.CORRECT),
    ("43", "42", Outcome.INCORRECT),
    (r"\frac{1}{3}", "0.5", Outcome.INCORRECT),
    (r"3\sqrt{2}", r"\sqrt{12}", Outcome.INCORRECT),
    (None, "42", Outcome.NO_ANSWER),
    ("9^{9^{9^{9}}}", "42", Outcome.UNPARSABLE),
]


class Grade(NamedTuple):
    """`outcome` is None where the gold cannot be read; `message` then says why. `ms` is the time of this comparison alone."""

    outcome: Outcome | None
    ms: float = 0.0
    message: str = ""


class Grader:
    """Thread-safe; needs neither the main thread nor Ray. Close it, or let its processes end with this one."""

    def __init__(self, config: RewardConfig) -> None:
        self.pool = WorkerPool(config.processes, config.deadline_s, config.memory_mib, config.recycle_after)
        self.cache: OrderedDict[tuple[str | None, str], Outcome] = OrderedDict()
        self.cached = 0

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        """A grade for each (answer, gold), in their order: pairs that are equal are compared once."""
        grades: dict[tuple[str | None, str], Grade] = {}
        undecided: dict[tuple[str | None, str], Comparison] = {}
        for pair in pairs:
            if pair in grades or pair in undecided:
                self.cached += 1
            elif (known := self.cache.get(pair)) is not None:
                self.cached += 1
                grades[pair] = Grade(known)
            else:
                start = time.perf_counter()
                decided = plain_grade(*pair)
                if isinstance(decided, Comparison):
                    undecided[pair] = decided
                else:
                    grades[pair] = decided._replace(ms=1000 * (time.perf_counter() - start))
        if undecided:
            replies = self.pool.compare(list(undecided.values()))
            grades |= {pair: Grade(*reply) for pair, reply in zip(undecided, replies, strict=True)}
        self._remember(grades)
        return [grades[pair] for pair in pairs]

    def invalid_golds(self, golds: Sequence[str]) -> dict[str, str]:
        """Why they cannot be read, for the golds that cannot; numbers, fractions and words need no process."""
        invalid, waiting = {}, {}
        for gold in dict.fromkeys(golds):
            try:
                letter, answer = split_choice(gold_once(gold).answer)
            except ValueError as error:
                invalid[gold] = str(error)
                continue
            if letter and not answer:
                continue
            if (
                words(answer) is None
                and bare_words(answer) is None
                and any(plain_fraction(v) is None and plain_number(v) is None for v in values(answer))
            ):
                waiting[gold] = Comparison(None, answer)
        replies = self.pool.compare(list(waiting.values())) if waiting else []
        for gold, reply in zip(waiting, replies, strict=True):
            if reply.outcome is not Outcome.CORRECT:
                invalid[gold] = reply.message or f"gold {gold!r} does not parse: {reply.outcome}"
        return invalid

    def prove(self) -> None:
        """Raises RuntimeError naming the known case that comes out wrong, or too late three times: a machine may be busy."""
        cases = [(answer, gold) for answer, gold, _ in GOLDEN]
        for last in (False, False, True):
            for case in cases:
                self.cache.pop(case, None)
            grades = zip(GOLDEN, self.grade(cases), strict=True)
            wrong = [(case, grade.outcome) for case, grade in grades if grade.outcome is not case[2]]
            if not wrong:
                return
            if last or any(outcome is not Outcome.TIMEOUT for _, outcome in wrong):
                (answer, gold, expected), outcome = wrong[0]
                raise RuntimeError(f"graded answer {answer!r} for gold {gold!r} as {outcome}, expected {expected}")

    def close(self) -> None:
        self.pool.close()

    def _remember(self, grades: dict[tuple[str | None, str], Grade]) -> None:
        """A timeout says something about the machine: the same answer gets another chance."""
        for pair, grade in grades.items():
            if grade.outcome not in (None, Outcome.TIMEOUT):
                self.cache[pair] = grade.outcome
        while len(self.cache) > CACHED_GRADES:
            self.cache.popitem(last=False)


def plain_grade(answer: str | None, gold: str) -> Grade | Comparison:
    """The grade, or the comparison that only algebra can make."""
    try:
        read = gold_once(gold)
    except ValueError as error:
        return Grade(None, message=str(error))
    if answer and len(answer) <= LONGEST_ANSWER:
        answer, read = by_choice(answer, read)
    outcome, left = decide(answer, read)
    return Comparison(left, read.answer, read.error) if outcome is None else Grade(outcome)


@lru_cache(maxsize=4096)
def gold_once(gold: str) -> Gold:
    return read_gold(gold)
