"""Hours of stage 2 on the embedded task, with a kill -9 every few minutes: no leak, no prompt lost or repeated, no hang.

    python -m benchmarks.soak [--minutes 120] [--every 5] [--seed 0] [--folder DIR] [section.key=value ...]

A victim is the driver (the same command is then started again), a rollout worker, a learner rank, a grading actor or one of its
processes, each as often as the others in an order that the seed decides. Prints JSON: every kill, with the seconds until a step
was recorded and until one that had never been reached was; memory by role in MiB per hour; prompts lost or repeated; the longest
time without a step. The folder keeps `memory.jsonl` (each process every `SAMPLE_S` seconds) and the run with its log.

Exit status 1, and why, if a prompt was lost or repeated, the run ended by itself, did not stop when asked, left processes behind,
no step came for longer than `QUIET_S` without a kill or `RECOVERY_S` with one, or the processes of a role, after their first
`LATER_S` seconds, grew by more than `LEAK` MiB of private memory an hour by more than two standard errors. Of a role that was
watched for less than `ENOUGH_H` hours of such life, as learners and rollout workers are when something dies every few minutes,
the verdict is "too short to tell": a run without kills (`--every` above `--minutes`) says it.
"""

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import by_role
from benchmarks.refusal import check_runs, refusing
from benchmarks.rl_resume import records, trained
from benchmarks.steps import Steps
from srl.commands.numbers import above
from srl.config import RolloutConfig

ROOT = Path(__file__).parents[1]
SMALL = [
    "rl.start=base", "rl.steps=4000", "rl.prompts=8", "rl.group=4", "rl.mini_batches=1", "rl.learning_rate=2e-5",
    "rl.evaluate_every=50", "evaluate.validation_problems=8", "learner.checkpoint_every=5", "learner.retries=1000",
    "rollout.retries=20", "rollout.workers=1", "rollout.threads=1", "learner.threads=1",
]  # fmt: skip
VICTIMS = ["driver", "rollout", "learner", "reward", "grading"]
SAMPLE_S = 15.0  # between two looks at memory
WARM_S, LATER_S = 300.0, 600.0  # of a process's life that do not count: what slows down between the two is filling up
ENOUGH_H = 0.5  # hours after LATER_S, of all processes of a role together, from which growth is told from filling up
LEAK = 64.0  # MiB an hour in one process: five such (driver, head, learner, rollout, reward) fill 16 GiB in two days
# An actor that hangs is ended by a deadline, of which rollout.hang_s is the shortest: what takes longer than its default waited
# for one. After a kill, another actor may take as long as it may to start.
QUIET_S = RolloutConfig().hang_s
RECOVERY_S = QUIET_S + RolloutConfig().start_timeout_s
LEAKS, NO_LEAK, TOO_SHORT = "leak", "no leak", "too short to tell"
STOP_S, DEATH_S = 300.0, 120.0  # for the run to stop when asked; for what a driver has started to follow it


class Soak:
    """A run, what was done to it and what was seen. Seconds are since the beginning."""

    def __init__(self, folder: Path, settings: Sequence[str], every_s: float, seed: int):
        self.folder, self.settings, self.every_s, self.rng = folder, settings, every_s, random.Random(seed)
        self.run = folder / "tiny"
        self.begun = time.monotonic()
        self.steps = Steps(self.run)
        self.memory: list[dict[str, Any]] = []
        self.ended: list[str] = []
        self.followers: list[tuple[psutil.Process, float]] = []  # what dead drivers had started, and when they died
        self.orphans: list[str] = []
        self.family: list[psutil.Process] = []
        self.order: list[str] = []
        self.due = self.next_moment(1)
        self.sampled = 0.0
        self.asked: float | None = None  # to stop, in monotonic seconds
        self.process = self.start()

    def now(self) -> float:
        return time.monotonic() - self.begun

    def next_moment(self, number: int) -> float:
        return self.every_s * (number + 0.2 * self.rng.random())

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "srl.main", "rl", f"run.directory={self.folder}", *SMALL, *self.settings]
        with (self.folder / "log").open("a") as log:
            print(f"==== started at {self.now():.0f} s", file=log, flush=True)
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def look(self) -> None:
        """One turn of the loop: news, memory, a kill when it is due, a driver that is gone started again."""
        self.steps.look()
        self.find_orphans()
        if self.now() - self.sampled > SAMPLE_S:
            self.sample()
        if self.process.poll() is not None:
            if not any(kill["pid"] == self.process.pid for kill in self.steps.kills):
                self.ended.append(f"after {self.now():.0f} s with {self.process.returncode}")
            self.followers += [(process, self.now()) for process in self.family]
            self.process = self.start()
        elif self.now() > self.due:
            self.kill()

    def sample(self) -> None:
        self.sampled, found = self.now(), by_role(self.process.pid)
        self.family = [process for group in found.values() for process in group]
        with (self.folder / "memory.jsonl").open("a") as file:
            for role, processes in found.items():
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        row = measure(process, role, self.now())
                        self.memory.append(row)
                        file.write(json.dumps(row) + "\n")

    def kill(self) -> None:
        """The next victim, as soon as there is one."""
        self.order = self.order or self.rng.sample(VICTIMS, len(VICTIMS))
        found = by_role(self.process.pid)
        if not (candidates := found.get(self.order[0])):
            return
        victim = self.rng.choice(candidates)
        role, self.family = self.order.pop(0), [process for group in found.values() for process in group]
        os.kill(victim.pid, signal.SIGKILL)
        self.steps.killed(role, pid=victim.pid, s=round(self.now(), 1))
        say(f"{self.now() / 60:.1f} min, step {self.steps.highest}: {role} {victim.pid} killed")
        self.due = self.next_moment(len(self.steps.kills) + 1)
        if role == "driver":
            self.process.wait(DEATH_S)

    def find_orphans(self) -> None:
        """What outlives its driver by `DEATH_S` is counted and killed."""
        self.followers = [(process, died) for process, died in self.followers if process.is_running()]
        for process, died in self.followers:
            if self.now() - died > DEATH_S:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.orphans.append(" ".join(process.cmdline()).strip()[:100])
                    process.kill()

    def stop(self) -> float | None:
        """SIGTERM; seconds until the driver had ended, None if it had to be killed."""
        asked, self.asked = self.now(), time.monotonic()
        self.family = [process for group in by_role(self.process.pid).values() for process in group]
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return None
        seconds = round(self.now() - asked, 1)
        self.steps.look()
        self.followers += [(process, self.now()) for process in self.family]
        psutil.wait_procs([process for process, _ in self.followers], DEATH_S + 1)
        self.find_orphans()
        return seconds

    def result(self, stopped: float | None) -> dict[str, Any]:
        settled, done = trained(self.run), [record["step"] for record in records(self.run, "metrics.jsonl")]
        kills, times = self.steps.kills, sorted([self.begun, *(at for at, _ in self.steps.times), self.asked or self.begun])
        return {
            "minutes": round(self.now() / 60, 1),
            "kills": len(kills),
            "by victim": {role: summary([kill for kill in kills if kill["victim"] == role]) for role in VICTIMS},
            "steps": len(done),
            "steps recorded once": done == list(range(len(done))),
            "steps done again": len(self.steps.times) - len(done),
            "prompts": len(settled),
            "prompts lost": len(set(range(max(settled, default=-1) + 1)) - set(settled)),
            "prompts repeated": len(settled) - len(set(settled)),
            "longest time without a step s": longest_gap(times),
            "longest time without a step and without a kill s": longest_gap(times, [self.begun, *(kill["at"] for kill in kills)]),
            "ended by itself": self.ended,
            "processes left behind": self.orphans,
            "stopped when asked after s": stopped,
            "memory": memory_slopes(self.memory),
            "each kill": [{name: value for name, value in kill.items() if name != "at"} for kill in kills],
        }


def measure(process: psutil.Process, role: str, now: float) -> dict[str, Any]:
    """Memory in bytes: `private` leaves out pages shared with others, such as the object store's."""
    memory, age = process.memory_info(), time.time() - process.create_time()
    return {
        "s": round(now, 1), "role": role, "pid": process.pid, "age": round(age, 1), "resident": memory.rss,
        "private": memory.rss - memory.shared, "files": process.num_fds(), "threads": process.num_threads(),
    }  # fmt: skip


def memory_slopes(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By role: what a process grows in an hour after its first `WARM_S` seconds, and its memory after `LATER_S` too."""
    warm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["age"] > WARM_S:
            warm[row["role"]].append(row)
    found = {}
    for role, those in sorted(warm.items()):
        mebibytes = {name: [row[name] / 2**20 for row in those] for name in ("resident", "private")}
        hours, pids = [row["s"] / 3600 for row in those], [row["pid"] for row in those]
        later = [index for index, row in enumerate(those) if row["age"] > LATER_S]
        found[role] = {
            "processes": len(set(pids)),
            "most MiB": round(max(mebibytes["resident"])),
            "MiB per hour": slope(pids, hours, mebibytes["resident"]),
            "private MiB per hour": slope(pids, hours, mebibytes["private"]),
            **{
                f"{label} after {LATER_S:.0f} s": slope(
                    *([values[i] for i in later] for values in (pids, hours, mebibytes[name]))
                )
                for name, label in (("resident", "MiB per hour"), ("private", "private MiB per hour"))
            },
            "open files per hour": slope(pids, hours, [row["files"] for row in those]),
            "threads per hour": slope(pids, hours, [row["threads"] for row in those]),
            "hours watched": round(watched([those[index] for index in later]), 2),
        }
        found[role]["verdict"] = leak_verdict(found[role])
    return found


def watched(rows: Iterable[dict[str, Any]]) -> float:
    """Hours between the first and the last look at each process, summed."""
    ages: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        ages[row["pid"]].append(row["age"])
    return sum(max(those) - min(those) for those in ages.values()) / 3600


def leak_verdict(found: dict[str, Any]) -> str:
    """Of one role; the slope of a single process has no error and counts as it is."""
    growth = found[f"private MiB per hour after {LATER_S:.0f} s"]
    if found["hours watched"] < ENOUGH_H:
        return TOO_SHORT
    return LEAKS if growth["slope"] - 2 * (growth["standard error"] or 0.0) > LEAK else NO_LEAK


def slope(groups: Sequence[int], x: Sequence[float], y: Sequence[float]) -> dict[str, float | None]:
    """Slope within groups (each has its own level), and its standard error with groups, not points, as the independent ones.

    The error is None with fewer than two groups of two points.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    parts = []  # of each group: deviations of x and of y
    for indices in members.values():
        middle_x, middle_y = (sum(values[index] for index in indices) / len(indices) for values in (x, y))
        if len(indices) > 1:
            parts.append([(x[index] - middle_x, y[index] - middle_y) for index in indices])
    spread = sum(dx * dx for part in parts for dx, _ in part)
    if not spread:
        return {"slope": None, "standard error": None}
    value = sum(dx * dy for part in parts for dx, dy in part) / spread
    scores = [sum(dx * (dy - value * dx) for dx, dy in part) for part in parts]
    error = None
    if len(parts) > 1:
        error = round(math.sqrt(len(parts) / (len(parts) - 1) * sum(score**2 for score in scores)) / spread, 2)
    return {"slope": round(value, 2), "standard error": error}


def longest_gap(times: Sequence[float], broken_by: Sequence[float] = ()) -> float:
    """Between two of the times, in seconds; of a gap that holds one of `broken_by`, what came before it."""
    gaps = ((earlier, min([later, *(at for at in broken_by if earlier <= at <= later)])) for earlier, later in pairwise(times))
    return round(max((end - earlier for earlier, end in gaps), default=0.0), 1)


def summary(kills: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one kind of victim; a kill after which the time was up has no seconds."""
    found: dict[str, Any] = {"kills": len(kills)}
    for name in ("next step after s", "new step after s"):
        seconds = sorted(kill[name] for kill in kills if name in kill)
        found[name] = {"median": seconds[len(seconds) // 2], "most": seconds[-1]} if seconds else None
    return found


def problems(result: dict[str, Any]) -> list[str]:
    """What must not happen and did; a run is fine without."""
    bad = ("prompts lost", "prompts repeated", "ended by itself", "processes left behind")
    found = [f"{name}: {result[name]}" for name in bad if result[name]]
    if not result["steps"] or not result["steps recorded once"]:
        found.append("steps are missing, or recorded twice")
    if result["stopped when asked after s"] is None:
        found.append(f"it did not stop in {STOP_S:.0f} s when asked")
    for what, limit in (("without a step and without a kill", QUIET_S), ("without a step", RECOVERY_S)):
        if (seconds := result[f"longest time {what} s"]) > limit:
            found.append(f"longest time {what}: {seconds:.0f} s, more than {limit:.0f}")
    leaks = [role for role, memory in result["memory"].items() if memory["verdict"] == LEAKS]
    return [*found, *(f"{role}: private memory grows by more than {LEAK:.0f} MiB an hour" for role in leaks)]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=above(0), default=120)
    parser.add_argument("--every", type=above(0), default=5, help="minutes between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended in any case
    folder = options.folder or Path(tempfile.mkdtemp(prefix="srl-soak-"))
    with refusing(parser):
        check_runs([*SMALL, *options.settings], folder)
    soak = Soak(folder, options.settings, 60 * options.every, options.seed)
    try:
        while soak.now() < 60 * options.minutes:
            soak.look()
            time.sleep(1)
        result = soak.result(soak.stop())
    finally:
        for process in [p for group in by_role(soak.process.pid).values() for p in group]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    print(json.dumps(result, indent=1))
    for role, memory in result["memory"].items():
        say(f"memory of {role}: {memory['verdict']}")
    for problem in (wrong := problems(result)):
        say(problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
