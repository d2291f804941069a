"""The grader against one plain math-verify process, on the same responses, side by side: python -m benchmarks.grading [FILE...]

FILE names golds: BENCHMARK=FILE (srl/tasks/benchmarks.py) or a hub dataset; without one, the benchmarks of ../shared/data,
as many golds from each. Rounds of both alternate, so that a machine that is busy is busy for both, and what counts is their
ratio. Both get whole responses and look for the answer themselves; ours has its processes started and plain its imports done.
The first of five rounds, with golds of its own as all of them, warms both up and is reported apart as `cold`: a run grades for
days. One JSON object:

    distinct    every response once: `slips`, every second one wrong, the gold with another number in it; `others`, all wrong,
                golds of other problems of the same kind; `responses`, what models wrote, from labelled cases; `algebra`,
                the worst case: nothing but answers that are not decided before math-verify sees them
    groups      16 responses a problem, five different ones, as in a group of RL: `slips` and `others`
    attacks     responses made to hang or fool a grader, one at a time, in seconds and processor seconds (as the deadline);
                then its speed against a grader that was spared them

Of each: responses/s of both, their ratio, `work`, processor seconds of plain / ours, which other programs hardly change; and of
all rounds ms of a grade (p50, p99, max) and the share on which both agree.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from benchmarks.refusal import refusing
from srl.commands.numbers import at_least, several
from srl.config import RewardConfig
from srl.reward.answer import stated_answer
from srl.reward.gold import read_gold
from srl.reward.grader import Grader, plain_grade
from srl.reward.pool import Comparison
from srl.reward.spelling import plain_fraction, plain_number, values, words
from srl.reward.worker import GOLDEN
from srl.tasks.problems import load_problems, on_hub
from srl.trajectory import Outcome

SHARED = Path(__file__).parents[2] / "shared"
FILES = {"math": "math_test", "gsm8k": "gsm8k_test", "minerva": "minerva_math", "olympiadbench": "olympiadbench"}
FILES |= {name: name for name in ("aime24", "aime25", "amc23")}

ROUNDS = 5
GROUP, DIFFERENT = 16, 5
PARTS = ("distinct", "groups", "attacks")

Pair = tuple[str, str]  # response, gold
Slip = Callable[[str, Sequence[str], int], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grading", description=__doc__.split("\n", 1)[0])
    parser.add_argument("sources", nargs="*", metavar="FILE")
    parser.add_argument("--golds", type=at_least(10), default=400, help="golds taken from all files together (default 400)")
    parser.add_argument("--processes", type=at_least(1), default=2, help="of our grader; plain math-verify has one (default 2)")
    parser.add_argument("--cases", type=Path, default=SHARED / "verifier" / "cases.jsonl", help="labelled cases")
    parser.add_argument("--attacks", type=Path, default=SHARED / "verifier" / "adversarial.jsonl", help="attacks")
    parser.add_argument("--parts", type=several(str, PARTS), default=PARTS, help="of the above (default all)")
    options = parser.parse_args()
    sources = options.sources or [f"{name}={SHARED}/data/{file}.jsonl" for name, file in FILES.items()]
    files = [Path(source.partition("=")[2] or source) for source in sources if not on_hub(source)]
    files += [options.cases] * ("distinct" in options.parts) + [options.attacks] * ("attacks" in options.parts)
    if missing := [str(file) for file in files if not file.is_file()]:
        parser.error(f"{missing[0]}: no such file; name golds as BENCHMARK=FILE, and --cases, --attacks or other --parts")
    with refusing(parser):
        golds = mixed_golds(sources, options.golds)
    algebra = needing_algebra(golds)
    report = {
        "golds": len(golds),
        "numbers": round(sum(plain_number(gold) is not None for gold in golds) / len(golds), 3),
        "processes": options.processes,
    }
    if "distinct" in options.parts:
        once = {
            "slips": distinct(golds, slips),
            "others": all_wrong(golds),
            "responses": responses(options.cases),
            "algebra": [(boxed(answer), gold) for answer, gold in algebra],
        }
        report["distinct"] = {name: side_by_side(pairs, options.processes) for name, pairs in once.items()}
    if "groups" in options.parts:
        found = {wrong.__name__: groups(golds[::2], golds, wrong) for wrong in (slips, others)}
        report["groups"] = {name: side_by_side(pairs, options.processes) for name, pairs in found.items()}
    if "attacks" in options.parts:
        report["attacks"] = attacked(read_lines(options.attacks), algebra, options.processes)
    print(json.dumps(report, indent=2))


def mixed_golds(sources: Sequence[str], count: int) -> list[str]:
    """Normalised, from all sources in turn, shuffled; a small source ends early."""
    found = []
    for source in sources:
        golds = list(dict.fromkeys(read_gold(problem.gold).answer for problem in load_problems(source, "problem", "answer")))
        random.Random(0).shuffle(golds)
        found.append(golds)
    mixed = [gold for turn in zip_longest(*found) for gold in turn if gold is not None]
    return list(dict.fromkeys(mixed))[:count]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def boxed(answer: str) -> str:
    return f"The answer is $\\boxed{{{answer}}}$."


def distinct(golds: Sequence[str], wrong: Slip) -> list[Pair]:
    """A wrong answer, or the right one spelled as the gold, for each gold in turn."""
    return [(boxed(gold if index % 2 else wrong(gold, golds, 1)[0]), gold) for index, gold in enumerate(golds)]


def all_wrong(golds: Sequence[str]) -> list[Pair]:
    return [(boxed(others(gold, golds, 1)[0]), gold) for gold in golds]


def responses(cases: Path) -> list[Pair]:
    """What models wrote, of the labelled cases."""
    return [(case["prediction"], case["gold"]) for case in read_lines(cases) if case["tier"] == "machine"]


def groups(golds: Sequence[str], pool: Sequence[str], wrong: Slip) -> list[Pair]:
    """For each gold 16 responses, of which five are different; the right one is one of them."""
    rng = random.Random(1)
    pairs = []
    for gold in golds:
        answers = [gold, *wrong(gold, pool, DIFFERENT - 1)]
        pairs += [(boxed(answer), gold) for answer in answers + rng.choices(answers, k=GROUP - len(answers))]
    return pairs


def slips(gold: str, golds: Sequence[str], count: int) -> list[str]:
    """The gold with other numbers in it, as a slip in the working gives; of a gold without numbers, golds of its kind."""
    rng = random.Random(gold)
    places = list(re.finditer(r"\d+", gold))
    if not places:
        return others(gold, golds, count)
    found: dict[str, None] = {}
    while len(found) < count:
        place = rng.choice(places)
        other = str(abs(int(place.group()) + rng.choice([-3, -2, -1, 1, 2, 3, 10, 11, 20])))
        answer = gold[: place.start()] + other + gold[place.end() :]
        if answer != gold:
            found[answer] = None
    return list(found)


def others(gold: str, golds: Sequence[str], count: int) -> list[str]:
    """Golds of other problems, of the same kind as far as there are any."""
    different = random.Random(gold).sample([other for other in golds if other != gold], len(golds) - 1)
    return sorted(different, key=lambda other: kind(other) != kind(gold))[:count]


def kind(answer: str) -> str:
    if plain_number(answer) is not None:
        return "number"
    if plain_fraction(answer) is not None:
        return "fraction"
    if words(answer) is not None:
        return "words"
    if len(values(answer)) > 1:
        return "list"
    if re.search(r"=|<|>|\\[lg]eq?|\\in(?![a-z])", answer):
        return "relation"
    return "row" if re.match(r"(?:\\left)?\s*[(\[].*,|\\begin", answer) else "expression"


class Round(NamedTuple):
    """Seconds and processor seconds of both."""

    responses: int
    ours: float
    plain: float
    ours_cpu: float
    plain_cpu: float


def side_by_side(pairs: list[Pair], processes: int) -> dict:
    grader = ready_grader(processes)
    done, ms, same = [], [], 0
    with multiprocessing.get_context("spawn").Pool(1) as process:
        process.apply(plain_verdicts, ([(boxed(answer), gold) for answer, gold, _ in GOLDEN],))
        for part in rounds(pairs):
            start, cpu_start = time.perf_counter(), processor_seconds(grader)
            grades = grader.grade([(stated_answer(response), gold) for response, gold in part])
            ours, ours_cpu = time.perf_counter() - start, processor_seconds(grader) - cpu_start
            verdicts, plain, plain_cpu = process.apply(plain_verdicts, (part,))
            done.append(Round(len(part), ours, plain, ours_cpu, plain_cpu))
            ms += [grade.ms for grade in grades]
            same += sum((grade.outcome is Outcome.CORRECT) is verdict for grade, verdict in zip(grades, verdicts, strict=True))
    grader.close()
    ms.sort()
    return {
        **rates(done[1:]),
        "cold": rates(done[:1]),
        "agree": round(same / len(pairs), 4),
        "ms": {"p50": round(ms[len(ms) // 2], 3), "p99": round(ms[int(len(ms) * 0.99)], 3), "max": round(ms[-1], 3)},
    }


def rates(done: Sequence[Round]) -> dict:
    responses, ours, plain, ours_cpu, plain_cpu = (sum(column) for column in zip(*done, strict=True))
    return {
        "responses": responses,
        "per_s": round(responses / ours),
        "plain_per_s": round(responses / plain),
        "ratio": round(plain / ours, 2),
        "work": round(plain_cpu / ours_cpu, 2),
    }


def ready_grader(processes: int, deadline_s: float = 30) -> Grader:
    grader = Grader(RewardConfig(processes=processes, deadline_s=deadline_s))
    grader.pool.warm()
    grader.prove()
    return grader


def rounds(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Each has golds of its own, so that no cache of either side has seen them."""
    for part in range(ROUNDS):
        yield pairs[len(pairs) * part // ROUNDS : len(pairs) * (part + 1) // ROUNDS]


def processor_seconds(grader: Grader) -> float:
    """Of this process and the grader's."""
    pids = [grader.pool.template.process.pid, *(worker.pid for worker in grader.pool.workers)]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def plain_verdicts(pairs: list[Pair]) -> tuple[list[bool], float, float]:
    """math-verify as documented, the gold in a box; in a process of its own. Verdicts, seconds, processor seconds."""
    from math_verify import parse, verify

    start, cpu_start = time.perf_counter(), time.process_time()
    verdicts = [verify(parse(f"\\boxed{{{gold}}}"), parse(response)) for response, gold in pairs]
    return verdicts, time.perf_counter() - start, time.process_time() - cpu_start


def attacked(cases: list[dict], algebra: list[Pair], processes: int) -> dict:
    """How long each attack takes, which are accepted, and the speed of a grader after them against one that saw none."""
    deadline_s = RewardConfig().deadline_s
    attacked, spared = ready_grader(processes, deadline_s), ready_grader(processes, deadline_s)
    before = relative_speed(attacked, spared, algebra[::2])
    seconds, work, accepted = [], [], []
    for case in cases:
        start, cpu_start = time.perf_counter(), processor_seconds(attacked)
        [grade] = attacked.grade([(stated_answer(case["text"]), case["gold"])])
        seconds.append(time.perf_counter() - start)
        work.append(processor_seconds(attacked) - cpu_start)
        if case["expected"] is False and grade.outcome is Outcome.CORRECT:
            accepted.append(case["id"])
    killed = attacked.pool.killed
    attacked.pool.warm()
    attacked.prove()
    after = relative_speed(attacked, spared, algebra[1::2])
    attacked.close()
    spared.close()
    return {
        "attacks": len(cases),
        "deadline_s": deadline_s,
        "slowest_s": round(max(seconds), 2),
        "slowest_processor_s": round(max(work), 2),
        "over_deadline_and_1_s": sum(second > deadline_s + 1 for second in seconds),
        "at_deadline": sum(second >= deadline_s for second in seconds),
        "processes_killed": killed,
        "accepted_wrongly": accepted,
        "speed_against_spared": {"before": round(before, 2), "after": round(after, 2)},
    }


def needing_algebra(golds: Sequence[str]) -> list[Pair]:
    """Different pairs of an answer and a gold that are not decided at once."""
    pairs = [(f"{answer} + z", f"{gold} + z") for gold in golds for answer in (*others(gold, golds, 3), f"{{{gold}}}")]
    return [pair for pair in dict.fromkeys(pairs) if isinstance(plain_grade(*pair), Comparison)]


def relative_speed(grader: Grader, other: Grader, pairs: list[Pair]) -> float:
    """Rate of the first / rate of the second, on the same pairs, the one that begins alternating."""
    seconds = {id(grader): 0.0, id(other): 0.0}
    for index, part in enumerate(rounds(pairs)):
        for each in (grader, other) if index % 2 else (other, grader):
            start = time.perf_counter()
            each.grade(part)
            seconds[id(each)] += time.perf_counter() - start
    return seconds[id(other)] / seconds[id(grader)]


if __name__ == "__main__":
    main()
