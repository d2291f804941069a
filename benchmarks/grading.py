"""The grader against one plain math-verify process, on the same answers, side by side: python -m benchmarks.grading FILE...

FILE names golds: BENCHMARK=FILE (srl/tasks/benchmarks.py), a file or a hub dataset. Wrong answers look like the gold and have
another number in them, as a model's do. Rounds of both alternate, so that a machine that is busy is busy
for both, and what is printed is their ratio. One JSON object:

    distinct    every answer once           answers, answers/s of both, their ratio, ms per answer (p50, p99, max)
                                            work: processor seconds of plain / ours, which other programs hardly change
    groups      16 answers a problem, five different ones, as in a group of RL
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from srl.config import RewardConfig
from srl.reward.gold import read_gold
from srl.reward.grader import Grader
from srl.reward.spelling import plain_number
from srl.reward.worker import GOLDEN
from srl.tasks.problems import load_problems

ROUNDS = 5
GROUP, DIFFERENT = 16, 5

Pair = tuple[str, str]  # answer, gold


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grading", description=__doc__.split("\n", 1)[0])
    parser.add_argument("sources", nargs="+", metavar="FILE")
    parser.add_argument("--golds", type=int, default=400, help="golds taken from all files together (default 400)")
    parser.add_argument("--processes", type=int, default=2, help="of our grader; plain math-verify has one (default 2)")
    options = parser.parse_args()
    golds = [read_gold(p.gold).answer for source in options.sources for p in load_problems(source, "problem", "answer")]
    random.Random(0).shuffle(golds)
    golds = golds[: options.golds]
    report = {
        "golds": len(golds),
        "numbers": round(sum(plain_number(gold) is not None for gold in golds) / len(golds), 3),
        "processes": options.processes,
        "distinct": side_by_side(distinct(golds), options.processes),
        "groups": side_by_side(groups(golds[:: GROUP // 4]), options.processes),
    }
    print(json.dumps(report, indent=2))


def distinct(golds: Sequence[str]) -> list[Pair]:
    """A wrong or a right answer, spelled as the gold, for each gold in turn; no pair occurs twice."""
    answers = [gold if index % 2 else other_answers(gold, golds, 1)[0] for index, gold in enumerate(golds)]
    return list(dict.fromkeys(zip(answers, golds, strict=True)))


def groups(golds: Sequence[str]) -> list[Pair]:
    """For each gold 16 answers, of which five are different; the right one is one of them."""
    rng = random.Random(1)
    pairs = []
    for gold in golds:
        answers = [gold, *other_answers(gold, golds, DIFFERENT - 1)]
        pairs += [(answer, gold) for answer in answers + rng.choices(answers, k=GROUP - len(answers))]
    return pairs


def other_answers(gold: str, golds: Sequence[str], count: int) -> list[str]:
    """The gold with other numbers in it, as a slip in the working gives; of a gold without numbers, other golds."""
    rng = random.Random(gold)
    places = list(re.finditer(r"\d+", gold))
    if not places:
        return rng.sample([other for other in dict.fromkeys(golds) if other != gold], count)
    found: dict[str, None] = {}
    while len(found) < count:
        place = rng.choice(places)
        other = str(int(place.group()) + rng.choice([-3, -2, -1, 1, 2, 3, 10])).removeprefix("-")
        found[gold[: place.start()] + other + gold[place.end() :]] = None
    return [answer for answer in found if answer != gold] or [gold + "1"]


def side_by_side(pairs: list[Pair], processes: int) -> dict:
    """Rates and their ratio, the median of rounds. Ours has its processes started and proved, plain has its imports done."""
    # Each round has golds of its own, so that no cache of either side has seen them.
    parts = [pairs[len(pairs) * part // ROUNDS : len(pairs) * (part + 1) // ROUNDS] for part in range(ROUNDS)]
    grader = Grader(RewardConfig(processes=processes, deadline_s=30))
    grader.pool.warm()
    grader.prove()
    ratios, ours_s, plain_s, ms = [], 0.0, 0.0, []
    ours_cpu_s, plain_cpu_s = -processor_seconds(grader), 0.0
    with multiprocessing.get_context("spawn").Pool(1) as plain:
        plain.apply(plain_seconds, ([(answer, gold) for answer, gold, _ in GOLDEN],))
        for part in parts:
            start = time.perf_counter()
            grades = grader.grade(part)
            ours = time.perf_counter() - start
            theirs, theirs_cpu = plain.apply(plain_seconds, (part,))
            plain_cpu_s += theirs_cpu
            ours_s, plain_s = ours_s + ours, plain_s + theirs
            ratios.append(theirs / ours)
            ms += [grade.ms for grade in grades]
    ours_cpu_s += processor_seconds(grader)
    grader.close()
    ms.sort()
    return {
        "answers": len(pairs),
        "answers_per_s": round(len(pairs) / ours_s),
        "plain_answers_per_s": round(len(pairs) / plain_s),
        "ratio": round(plain_s / ours_s, 2),
        "work": round(plain_cpu_s / ours_cpu_s, 2),
        "ratio_of_rounds": {"median": round(statistics.median(ratios), 2), "least": round(min(ratios), 2)},
        "ms": {"p50": round(ms[len(ms) // 2], 3), "p99": round(ms[int(len(ms) * 0.99)], 3), "max": round(ms[-1], 3)},
    }


def processor_seconds(grader: Grader) -> float:
    """Of this process and the grader's."""
    pids = [worker.process.pid for worker in grader.pool.workers]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def plain_seconds(pairs: list[Pair]) -> tuple[float, float]:
    """math-verify as its documentation has it, both sides in a box; in a process of its own. Seconds, processor seconds."""
    from math_verify import parse, verify

    start, cpu_start = time.perf_counter(), time.process_time()
    for answer, gold in pairs:
        verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
    return time.perf_counter() - start, time.process_time() - cpu_start


if __name__ == "__main__":
    main()
