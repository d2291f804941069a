"""One GRPO step by phase, and what sampling ahead gains: python -m benchmarks.rl_step [--model FOLDER] [--trl PYTHON]

Measured: rollout (vLLM), reward, learner (packed, DeepSpeed) and weight sync of one step of the embedded task, from `--model`
(a fine-tuned one, whose answers are long and of many lengths; or the base model). With --trl, a Python that has TRL installed,
its GRPOTrainer takes steps in between: same model, problems, group size, longest response, optimizer, no KL, float32, the same
number of cores (--cores): as threads of TRL's process and of srl's learner, and as engines of one thread, which take turns with
the learner. TRL samples with `generate` of transformers, its default, all trajectories at once. With --bfloat16 both use that:
TRL by autocast and with gradient checkpointing, as are its defaults; srl in the weights, with the correction for what that
changes. Each learns from what it sampled itself, so models and answers differ from the second step on; `tokens` of both are
printed. Processor time, of this process and all it started against TRL's process, says how much work it is where the machine does
other things too. The first round warms up.

Simulated: steps per hour with `rl.ahead` 0, 1, 2 and 4 against 0, with the real ledger, and engines that sample groups of
log-normal length side by side, one each; no model runs (--simulate: this alone). When weights come, engines do what
`rollout.weight_update` and `learner.transfer` say (WAYS). A real engine has many trajectories and ends all of them first, so
`finish by store` is between the two that are simulated with `finish`. With `continue`, that keys and values are computed again is
not simulated. Prints JSON.
"""

import argparse
import contextlib
import heapq
import json
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import psutil

from benchmarks.refusal import check_program, refusing
from benchmarks.trl_trainers import Trainer, rows_per_pass
from srl.commands.numbers import at_least
from srl.config import Config, load_config
from srl.driver.cluster import connect
from srl.driver.ledger import Ledger
from srl.driver.policy import PolicyUpdate
from srl.driver.session import Session
from srl.learner.model import check_folder
from srl.observe.run_directory import RunDirectory
from srl.protocols.chat import model_folder
from srl.tasks.problems import Problem, chain_problems

RATE = 1e-5
PHASES = ("rollout", "reward", "learner", "sync")
# Values of rollout.weight_update, and with `finish` the two kinds of learner.transfer.
WAYS = {
    "finish by store": "each engine ends its group, loads and goes on; the driver waits for all",
    "finish by broadcast": "no engine begins a group before all have ended theirs and loaded",
    "continue": "all load at once, their groups stand still and go on",
}
LOADING = -1  # in place of a group


def one_step(session: Session, update: PolicyUpdate, problems: list[Problem], number: int) -> dict[str, float]:
    """A GRPO step, as the driver of stage 2 takes it; seconds of its phases, and what it sampled and trained."""
    group = session.config.rl.group
    asked = [session.new_trajectory(f"b/{number}/{p.prompt_id}/{member}", p) for p in problems for member in range(group)]
    marks = [time.monotonic()]
    done = session.pool().generate(session.config.protocol.name, asked, 1.0)
    marks.append(time.monotonic())
    session.grade(done)
    marks.append(time.monotonic())
    found = update.step(done, number, RATE, off_policy=session.config.model.dtype == "bfloat16")
    marks.append(time.monotonic())
    session.pool().load_weights(update.learners.publish(session.pool().version + 1))
    marks.append(time.monotonic())
    seconds = dict(zip(PHASES, (end - start for start, end in pairwise(marks)), strict=True))
    counts = {"tokens": sum(trajectory.sampled_tokens() for trajectory in done)}
    return seconds | counts | {"groups_without_signal": found["groups_without_signal"]}


def trl_trainer(python: str, config: Config, session: Session, batches: list[list[Problem]]) -> Trainer:
    longest, count = config.rollout.max_response_tokens, config.rl.group * config.rl.prompts
    question, system = config.prompts.question, config.prompts.system
    rows = [
        {
            "prompt": [{"role": "system", "content": system}] * bool(system)
            + [{"role": "user", "content": question.replace("{question}", problem.question)}],
            "gold": problem.gold,
        }
        for problems in batches
        for problem in problems
    ]
    length = len(session.chat.opening(batches[0][0].question)) + longest
    return Trainer(
        python,
        {
            "trainer": "grpo", "model": session.base, "threads": config.learner.threads, "rate": RATE, "rows": rows,
            "batch": count, "rows_per_pass": rows_per_pass(count, length, config.learner.micro_batch_tokens),
            "defaults": config.model.dtype == "bfloat16", "group": config.rl.group, "longest": longest,
            "stop_ids": session.chat.stop_ids,
        },
    )  # fmt: skip


def processor_seconds(trl: int | None) -> tuple[float, float]:
    """Of this process and all that it started, and of TRL's, since they began."""
    spent = {None: 0.0}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent[process.pid] = times.user + times.system
    theirs = spent.pop(trl, 0.0)
    return sum(spent.values()), theirs


def measured(options: argparse.Namespace, folder: str) -> dict:
    check_program("--trl", options.trl)
    config = load_config(
        None,
        [
            f"learner.threads={options.cores}", f"rollout.workers={options.cores}", "rollout.threads=1",
            f"run.directory={folder}", f"model.path={options.model}", "recipe=grpo",
            f"model.dtype={'bfloat16' if options.bfloat16 else 'float32'}", "objective.kl=0", "rl.mini_batches=1",
            f"rl.prompts={options.prompts}", f"rl.group={options.group}", *options.settings,
        ],
    )  # fmt: skip
    check_folder(model_folder(options.model), "--model")
    connect(config)
    session = Session(config, RunDirectory(config))
    update = PolicyUpdate(config, session.base, session.chat.opening(""))
    batches = [chain_problems("train", options.prompts, number, 4, 4) for number in range(options.rounds + 1)]
    trainer = trl_trainer(options.trl, config, session, batches) if options.trl else None
    pid = trainer.process.pid if trainer else None
    ours, theirs = [], []
    for number, problems in enumerate(batches):
        before = processor_seconds(pid)
        ours.append(one_step(session, update, problems, number))
        between = processor_seconds(pid)
        ours[-1]["processor_s"] = between[0] - before[0]
        if trainer:
            theirs.append(trainer.step())
            theirs[-1]["processor_s"] = processor_seconds(pid)[1] - between[1]
    session.close()
    if trainer:
        trainer.close()
    # The first round warms up.
    shape = {name: getattr(options, name) for name in ("cores", "prompts", "group")}
    shape["longest"] = config.rollout.max_response_tokens
    return {**shape, "settings": options.settings, **summary(ours[1:], theirs[1:])}


def summary(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict:
    """Medians over rounds; ratios are of the two sides of one round."""
    found = {name: median(step[name] for step in ours) for name in ours[0]}
    seconds = [sum(step[phase] for phase in PHASES) for step in ours]
    share = {phase: found[phase] / sum(found[phase] for phase in PHASES) for phase in PHASES}
    result = {"srl": {"seconds": median(seconds), **found}, "share": share}
    if theirs:
        pairs = list(zip(seconds, ours, theirs, strict=True))
        measures = ("seconds", "processor_s", "generate_s", "tokens")
        result["trl"] = {name: median(step[name] for step in theirs) for name in measures}
        result["times_faster_than_trl"] = median(other["seconds"] / took for took, _, other in pairs)
        result["processor_time_of_trl_over_srl"] = median(other["processor_s"] / own["processor_s"] for _, own, other in pairs)
    return result


@dataclass
class Engines:
    """`count` engines; each samples one group at a time, of log-normal length with median 1 s, and loads weights for `sync_s`."""

    count: int
    spread: float
    sync_s: float
    rng: random.Random
    now: float = 0.0
    queue: list[int] = field(default_factory=list)  # groups to begin
    finished: set[int] = field(default_factory=set)
    busy: list[tuple[float, int]] = field(default_factory=list)  # heap of (when an engine is free, its group)
    last: set[int] = field(default_factory=set)  # groups after which their engine loads
    paused: bool = False

    def begin(self, *groups: int) -> None:
        self.queue += groups
        while self.queue and len(self.busy) < self.count and not self.paused:
            heapq.heappush(self.busy, (self.now + self.rng.lognormvariate(0.0, self.spread), self.queue.pop(0)))

    def advance(self, until: float) -> None:
        """Work until that time."""
        while self.busy and self.busy[0][0] <= until:
            self.now, group = heapq.heappop(self.busy)
            if group != LOADING:
                self.finished.add(group)
            if group in self.last:
                self.last.remove(group)
                heapq.heappush(self.busy, (self.now + self.sync_s, LOADING))
            self.begin()
        self.now = max(self.now, until)

    def load(self, way: str) -> None:
        """Returns when all hold the new weights. WAYS says what an engine does until then."""
        drained = max((end for end, _ in self.busy), default=self.now)
        if way == "finish by store":
            self.last = {group for _, group in self.busy}
        elif way == "finish by broadcast":
            self.paused = True
            self.advance(drained)
            self.paused = False
        else:
            drained, self.busy = self.now, [(end + self.sync_s, group) for end, group in self.busy]
        self.busy += [(self.now + self.sync_s, LOADING)] * (self.count - len(self.busy))
        heapq.heapify(self.busy)
        self.advance(drained + self.sync_s)


def simulated(
    way: str, ahead: int, steps: int, batch: int, engines: int, train_s: float, sync_s: float, spread: float, seed: int
) -> dict:
    """Seconds of `steps` steps, and by how many steps the oldest and the mean group was older than the step that trained it."""
    ledger, fleet, ages = Ledger(batch, ahead), Engines(engines, spread, sync_s, random.Random(seed)), Counter()
    for step in range(steps):
        fleet.begin(*ledger.admit(step, steps * batch))
        while (chosen := ledger.choose(step, fleet.finished)) is None:
            fleet.advance(fleet.busy[0][0])
        ages.update(step - ledger.in_flight[position] for position in chosen)
        fleet.finished -= set(chosen)
        fleet.advance(fleet.now + train_s)
        fleet.load(way)
        ledger.settle(dict.fromkeys(chosen, "trained"))
    return {"seconds": fleet.now, "oldest": max(ages), "mean_age": sum(age * n for age, n in ages.items()) / ages.total()}


def compared(shape: dict) -> dict[str, dict[int, dict]]:
    """By way of the weights and steps ahead."""
    found = {way: {ahead: simulated(way, ahead, **shape) for ahead in (0, 1, 2, 4)} for way in WAYS}
    for row in found.values():
        for value in row.values():
            value["times_faster_than_synchronous"] = row[0]["seconds"] / value["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="model folder, such as runs/tiny/checkpoints/ift")
    parser.add_argument("--prompts", type=at_least(1), default=48)
    parser.add_argument("--group", type=at_least(1), default=8)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--cores", type=at_least(1), default=len(os.sched_getaffinity(0)), help="that each side may use")
    parser.add_argument("--trl", default="", metavar="PYTHON", help="a Python that has TRL installed")
    parser.add_argument("--bfloat16", action="store_true", help="instead of float32")
    parser.add_argument("--simulate", action="store_true", help="only the simulation")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="such as rollout.max_response_tokens=720")
    options = parser.parse_intermixed_args()
    result: dict = {}
    if not options.simulate:
        with tempfile.TemporaryDirectory() as folder, refusing(parser):
            result["step"] = measured(options, folder)
    # One step samples 64 groups on 16 engines, 4 s and a tail; training takes 3 s.
    shape = {"steps": 200, "batch": 64, "engines": 16, "train_s": 3.0, "sync_s": 0.2, "spread": 0.8, "seed": 0}
    result["simulated"] = {"shape": shape, "ahead": compared(shape)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
