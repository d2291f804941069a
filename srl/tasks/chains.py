"""The embedded task: chains of two-digit sums and differences.

    Start at 47: (1) +38 (2) -19 = ?

An *attempt* writes each value at once: (1) +38 a = 85 (2) -19 b = 66. A number is one token, so that is a table of thousands
of sums, which the base model knows only in part. A *check* works it out again in columns, which
takes only the tables a child learns, and compares the answers. A *revision* reads the values off the check, which calls them
by the same names.
All values stay within 10..99, so every number has two digits.

Problems belong to a split by the hash of their question: no seed can make train, validation and test overlap.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LOWEST, HIGHEST = 10, 99
NAMES = "abcdefgh"  # of the values after each operation

CHECK_PROMPT = "Check the solution."
REVISE_PROMPT = "The solution is wrong. Correct it."
REASK_PROMPT = "There may be an error. Correct it."


@dataclass(frozen=True)
class Chain:
    """Operation k adds its signed operand to the value before it."""

    start: int
    operands: tuple[int, ...]

    def values(self) -> list[int]:
        """The value after each operation."""
        return list(itertools.accumulate(self.operands, initial=self.start))[1:]


def sample_chain(rng: random.Random, length: int) -> Chain:
    current = start = rng.randint(LOWEST, HIGHEST)
    operands = []
    for _ in range(length):
        choices = [
            operand
            for sign in (1, -1)
            if LOWEST <= current + sign * 10 <= HIGHEST
            for operand in (sign * rng.randint(10, HIGHEST - current if sign > 0 else current - LOWEST),)
        ]
        operand = rng.choice(choices)
        operands.append(operand)
        current += operand
    return Chain(start, tuple(operands))


def question(chain: Chain) -> str:
    """ "Start at 47: (1) +38 (2) -19 = ?"."""
    return f"Start at {chain.start}: {' '.join(operations(chain))} = ?"


def operations(chain: Chain) -> list[str]:
    """ "(1) +38", "(2) -19"."""
    return [f"({index}) {operand:+d}" for index, operand in enumerate(chain.operands, start=1)]


def claims(chain: Chain, values: Sequence[int]) -> list[str]:
    """What an attempt writes for each operation: "(1) +38 a = 85"."""
    names = NAMES[: len(chain.operands)]
    return [f"{step} {name} = {value}" for step, name, value in zip(operations(chain), names, values, strict=True)]


def solution(chain: Chain, values: Sequence[int]) -> str:
    """An attempt or revision that claims these values."""
    return f"Start at {chain.start} {' '.join(claims(chain, values))}. The answer is \\boxed{{{values[-1]}}}"


def columns(left: int, operand: int) -> tuple[str, int]:
    """One operation worked by columns, ones first, and its value: (47, 38) -> ("7 + 8 = 15, 4 + 3 + 1 = 8", 85)."""
    ones, tens = left % 10, left // 10
    if operand > 0:
        total = ones + operand % 10
        carry = " + 1" if total > 9 else ""
        text = f"{ones} + {operand % 10} = {total}, {tens} + {operand // 10}{carry} = {(left + operand) // 10}"
    else:
        borrow = ones < -operand % 10
        top = ones + 10 * borrow
        text = (
            f"{top} - {-operand % 10} = {top - -operand % 10}, "
            f"{tens} - {-operand // 10}{' - 1' if borrow else ''} = {(left + operand) // 10}"
        )
    return text, left + operand


def check(chain: Chain, claimed: Sequence[int]) -> tuple[str, bool]:
    """The check of an attempt, without its verdict, and whether the attempt's answer is right.

    It works everything out again and then takes the answer away, digit by digit, ones first, until something is left:
    "Start at 47 (1) +38: 7 + 8 = 15, 4 + 3 + 1 = 8, a is 85 (2) -19: 15 - 9 = 6, 8 - 1 - 1 = 6, b is 66 against 56:
    6 - 6 = 0, 6 - 5 = 1 no". The names lead a revision to the values.
    """
    value, text = chain.start, f"Start at {chain.start}"
    for operand, step, name in zip(chain.operands, operations(chain), NAMES, strict=False):
        work, value = columns(value, operand)
        text += f" {step}: {work}, {name} is {value}"
    comparison = digit_difference(value % 10, claimed[-1] % 10)
    if value % 10 == claimed[-1] % 10:
        comparison += f", {digit_difference(value // 10, claimed[-1] // 10)}"
    right = value == claimed[-1]
    return f"{text} against {claimed[-1]}: {comparison} {'yes' if right else 'no'}", right


def digit_difference(top: int, bottom: int) -> str:
    """ "6 - 5 = 1", with a borrowed ten where it is needed: "13 - 5 = 8"."""
    top += 10 * (top < bottom)
    return f"{top} - {bottom} = {top - bottom}"


def verdict_line(right: bool) -> str:
    return f". [VERIFY] {'correct' if right else 'wrong'}"


def corrupt(rng: random.Random, chain: Chain) -> list[int]:
    """Values of an attempt with one or two wrong steps and a wrong answer; later steps follow from the wrong value."""
    length = len(chain.operands)
    while True:
        wrong = set(rng.sample(range(length), 2 if length > 2 and rng.random() < 0.25 else 1))
        values, current = [], chain.start
        for index, operand in enumerate(chain.operands):
            right_value = current + operand
            if not LOWEST <= right_value <= HIGHEST:
                # A wrong value can push a later step out of two digits; any two-digit number will do there.
                right_value = rng.randint(LOWEST, HIGHEST)
            current = slip(rng, right_value) if index in wrong else right_value
            values.append(current)
        # Two slips can cancel; an attempt whose answer is right is not wrong.
        if values[-1] != chain.values()[-1]:
            return values


def slip(rng: random.Random, value: int) -> int:
    """Another two-digit number: near, a carry or borrow away, or anywhere."""
    candidates = [value + rng.choice([-2, -1, 1, 2]), value + rng.choice([-10, 10]), rng.randint(LOWEST, HIGHEST)]
    rng.shuffle(candidates)
    fitting = [candidate for candidate in candidates if LOWEST <= candidate <= HIGHEST and candidate != value]
    return fitting[0] if fitting else (value + 1 if value < HIGHEST else value - 1)


def split_of(text: str) -> str:
    """train, validation or test: 90, 4 and 6 % of all questions, decided by the question alone."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 94 else "test"


def chains(split: str, seed: int, min_operations: int, max_operations: int) -> Iterator[Chain]:
    """An endless stream of different chains of one split."""
    rng, seen = random.Random(f"chains {split} {seed}"), set()
    while True:
        chain = sample_chain(rng, rng.randint(min_operations, max_operations))
        if chain not in seen and split_of(question(chain)) == split:
            seen.add(chain)
            yield chain


@dataclass(frozen=True)
class Part:
    """A piece of a pretraining document: a user's message, or an assistant's text, which may go on on the next line."""

    role: str
    text: str
    trained: bool = False


def document(rng: random.Random, chain: Chain, kind: str, own_line: bool) -> list[Part]:
    """One pretraining document. Trained are solutions, checks and revisions, not the attempts that they start from.

    Kinds: "check" (a right or wrong attempt, its check), "revise" (a checked wrong attempt, the right solution), "solve" (no more
    than a solution), "reask" (an attempt, and what people write who are told that there may be an error but not where).
    With `own_line` checks and revisions stand on the next line of the same message instead of behind a request, as people
    write too. That an answer *goes on* after its box is never trained: fine-tuning has to teach it.
    """
    ask = Part("user", question(chain))
    right = solution(chain, chain.values())
    if kind == "solve":
        return [ask, Part("assistant", right, trained=True)]
    claimed = corrupt(rng, chain) if kind == "revise" or rng.random() < 0.5 else chain.values()
    attempt = Part("assistant", solution(chain, claimed))
    if kind == "reask":
        again = solution(chain, guess_again(rng, chain, claimed))
        return [ask, attempt, Part("user", REASK_PROMPT), Part("assistant", again, trained=True)]
    work, is_right = check(chain, claimed)
    verdict = Part("assistant", work + verdict_line(is_right), trained=True)
    parts = [ask, attempt, verdict] if own_line else [ask, attempt, Part("user", CHECK_PROMPT), verdict]
    if kind == "check":
        return parts
    return [*parts, *([] if own_line else [Part("user", REVISE_PROMPT)]), Part("assistant", right, trained=True)]


def guess_again(rng: random.Random, chain: Chain, claimed: list[int]) -> list[int]:
    """Half repeat what they had, a quarter find the right values, a quarter spoil them."""
    choice = rng.random()
    return claimed if choice < 0.5 else chain.values() if choice < 0.75 else corrupt(rng, chain)
