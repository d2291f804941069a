"""Word problems of one operation for a small real model: python -m benchmarks.word_problems FOLDER

Writes `train.jsonl` and `test.jsonl` (`problem`, `answer`), and `conversations/` for `import`: answers to training problems, 45 %
of them wrong at first, each checked and the wrong ones corrected. configs/smollm2-135m.yaml looks for them in `words`.
"""

import argparse
import json
import operator
import random
from pathlib import Path

from srl.config import load_config

CONFIG = "smollm2-135m.yaml"
NAMES = ("Tom", "Anna", "Ben", "Lisa", "Max", "Emma", "Paul", "Nina", "Carl", "Julia")
THINGS = ("apples", "books", "coins", "pens", "marbles", "cards", "stickers", "shells")
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SLIPS = (-10, -2, -1, 1, 2, 10)  # of a wrong answer
WRONG_SHARE = 0.45
TRAIN, TEST, CONVERSATIONS, HELD_OUT = 600, 200, 240, 16

Problem = tuple[str, int, str, int]  # question, and the operation that answers it


def draw(rng: random.Random) -> Problem:
    a, b = rng.randint(5, 60), rng.randint(2, 30)
    name, other = rng.sample(NAMES, 2)
    thing, kind = rng.choice(THINGS), rng.randrange(4)
    if kind == 0:
        return f"{name} has {a} {thing}. {other} gives {name} {b} more {thing}. How many {thing} does {name} have now?", a, "+", b
    if kind == 1:
        a = max(a, b + 1)
        return f"{name} has {a} {thing} and gives {b} of them to {other}. How many {thing} does {name} have left?", a, "-", b
    if kind == 2:
        a, b = rng.randint(2, 12), rng.randint(2, 9)
        return f"{name} buys {a} boxes with {b} {thing} each. How many {thing} does {name} have in total?", a, "*", b
    return f"{name} has {a} {thing} and {other} has {b} {thing} more than {name}. How many {thing} does {other} have?", a, "+", b


def problems(count: int, seed: int = 0) -> list[Problem]:
    """No two with the same question."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        problem = draw(rng)
        found.setdefault(problem[0], problem)
    return list(found.values())


def answer(problem: Problem, slip: int = 0) -> str:
    _, a, sign, b = problem
    value = SIGNS[sign](a, b) + slip
    return f"{a} {sign} {b} = {value}. The answer is \\boxed{{{value}}}."


def conversation(problem: Problem, system: str, rng: random.Random) -> dict:
    """A long chain: attempt, check with its verdict, and after "wrong" the right answer."""
    question, a, sign, b = problem
    right = SIGNS[sign](a, b)
    if rng.random() < WRONG_SHARE:
        slip = rng.choice(SLIPS)
        check = f"Check: {a} {sign} {b} is {right}, not {right + slip}. [VERIFY] wrong"
        text = "\n\n".join([answer(problem, slip), check, answer(problem)])
    else:
        text = f"{answer(problem)}\n\nCheck: {a} {sign} {b} is {right}. [VERIFY] correct"
    said = (("system", system), ("user", question), ("assistant", text))
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    made = problems(TRAIN + TEST)
    rows = [{"problem": problem[0], "answer": str(SIGNS[problem[2]](problem[1], problem[3]))} for problem in made]
    rng, system = random.Random(1), load_config(CONFIG, []).prompts.system
    talks = [conversation(problem, system, rng) for problem in made[:CONVERSATIONS]]
    write(folder / "train.jsonl", rows[:TRAIN])
    write(folder / "test.jsonl", rows[TRAIN:])
    write(folder / "conversations" / "train.jsonl", talks[:-HELD_OUT])
    write(folder / "conversations" / "validation.jsonl", talks[-HELD_OUT:])


if __name__ == "__main__":
    main()
