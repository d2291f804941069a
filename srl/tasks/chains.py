"""The embedded task: chains of two-digit sums and differences.

    Start at 47: (1) + 38 (2) - 19 = ?

An *attempt* writes each value at once: (1) + 38 = 85. A number is one token, so this is a table of thousands of
sums. A *check* redoes each step by columns, ones first, which takes only the tables a child learns, and stops at the
first step that the attempt got wrong; a *revision* can build on the value the check found there.
All values stay within 10..99, so every number has two digits.

Problems belong to a split by the hash of their question: no seed can make train, validation and test overlap.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

LOWEST, HIGHEST = 10, 99

CHECK_PROMPT = "Check the solution."
REVISE_PROMPT = "The solution is wrong. Correct it."
REASK_PROMPT = "There may be an error. Correct it."


@dataclass(frozen=True)
class Chain:
    """Step k adds its signed operand to the value before it."""

    start: int
    operands: tuple[int, ...]

    def values(self) -> list[int]:
        """The value after each step."""
        values, current = [], self.start
        for operand in self.operands:
            current += operand
            values.append(current)
        return values


def sample_chain(rng: random.Random, steps: int) -> Chain:
    current = start = rng.randint(LOWEST, HIGHEST)
    operands = []
    for _ in range(steps):
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


def label(index: int) -> str:
    """"(1)" for the first step."""
    return f"({index + 1})"


def signed(operand: int) -> str:
    return f"{'+' if operand > 0 else '-'} {abs(operand)}"


def question(chain: Chain) -> str:
    """"Start at 47: (1) + 38 (2) - 19 = ?"."""
    steps = " ".join(f"{label(index)} {signed(operand)}" for index, operand in enumerate(chain.operands))
    return f"Start at {chain.start}: {steps} = ?"


def solution(chain: Chain, values: list[int]) -> str:
    """An attempt or revision that claims these values."""
    steps = zip(chain.operands, values, strict=True)
    work = " ".join(f"{label(index)} {signed(operand)} = {value}" for index, (operand, value) in enumerate(steps))
    return f"{work}. The answer is \\boxed{{{values[-1]}}}"


def columns(left: int, operand: int) -> tuple[str, int]:
    """One step worked by columns, ones first, and its value: (47, 38) -> ("7 + 8 = 15, 4 + 3 + 1 = 8", 85)."""
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


def check(chain: Chain, claimed: list[int]) -> tuple[str, bool]:
    """The check of an attempt, without its verdict line, and whether the attempt is right.

    It takes each value from the attempt, for the steps before are already checked, and ends at the first wrong one.
    """
    lines, left = [], chain.start
    for index, (operand, value) in enumerate(zip(chain.operands, claimed, strict=True)):
        work, right_value = columns(left, operand)
        lines.append(f"{label(index)} {signed(operand)}: {work}, {right_value} {'yes' if value == right_value else 'no'}")
        if value != right_value:
            return " ".join(lines), False
        left = value
    return " ".join(lines), True


def verdict_line(right: bool) -> str:
    return f". [VERIFY] {'correct' if right else 'wrong'}"


def corrupt(rng: random.Random, chain: Chain) -> list[int]:
    """Values with one or two wrong steps of the kinds that a model makes; later steps follow from the wrong value."""
    steps = len(chain.operands)
    wrong = set(rng.sample(range(steps), 2 if steps > 2 and rng.random() < 0.25 else 1))
    values, current = [], chain.start
    for index, operand in enumerate(chain.operands):
        right_value = current + operand
        if not LOWEST <= right_value <= HIGHEST:
            # A wrong value can push a later step out of two digits; any two-digit number will do there.
            right_value = rng.randint(LOWEST, HIGHEST)
        value = right_value
        while index in wrong and value == right_value:
            slip = rng.choice(["carry", "ones", "digit", "other operand", "sign"])
            if slip == "carry":
                value = right_value + rng.choice([-10, 10])
            elif slip == "ones":
                value = right_value + rng.choice([-2, -1, 1, 2])
            elif slip == "digit":
                place = rng.choice([1, 10])
                value = right_value + place * (rng.randint(0, 9) - right_value // place % 10)
            elif slip == "other operand":
                value = current + rng.choice(chain.operands)
            else:
                value = current - operand
            if not LOWEST <= value <= HIGHEST:
                value = right_value
        values.append(value)
        current = value
    return values


def split_of(text: str) -> str:
    """train, validation or test: 90, 4 and 6 % of all questions, decided by the question alone."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 94 else "test"


def chains(split: str, seed: int, min_steps: int, max_steps: int) -> Iterator[Chain]:
    """An endless stream of different chains of one split."""
    rng, seen = random.Random(f"chains {split} {seed}"), set()
    while True:
        chain = sample_chain(rng, rng.randint(min_steps, max_steps))
        if chain not in seen and split_of(question(chain)) == split:
            seen.add(chain)
            yield chain


Message = tuple[str, str]


def document(rng: random.Random, chain: Chain, kind: str) -> list[Message]:
    """One pretraining conversation; only its last message is trained.

    Kinds: "solve" (question, solution), "check" (a right or wrong attempt, its check), "revise" (a checked wrong attempt,
    the right solution), "reask" (an attempt, mostly wrong, nobody says where; the right solution).
    """
    ask = ("user", question(chain))
    right = solution(chain, chain.values())
    if kind == "solve":
        return [ask, ("assistant", right)]
    wrong_share = {"check": 0.5, "revise": 1.0, "reask": 0.7}[kind]
    claimed = corrupt(rng, chain) if rng.random() < wrong_share else chain.values()
    work, is_right = check(chain, claimed)
    attempt, verdict = ("assistant", solution(chain, claimed)), ("assistant", work + verdict_line(is_right))
    if kind == "check":
        return [ask, attempt, ("user", CHECK_PROMPT), verdict]
    if kind == "revise":
        return [ask, attempt, ("user", CHECK_PROMPT), verdict, ("user", REVISE_PROMPT), ("assistant", right)]
    return [ask, attempt, ("user", REASK_PROMPT), ("assistant", right)]
