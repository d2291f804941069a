"""Stage 2 as a job on five Ray nodes on this machine, each killed with -9 in turn, against the same job left alone.

    python -m benchmarks.nodes [--victims learner,rollout,cpu,head] [--seed 0] [--folder DIR] [section.key=value ...]

Nodes: a head without CPUs, where the driver runs; one for the learner, two for a rollout worker each, one for grading. Each is a
`ray start` with its own ports and, for root, its own network namespace. In place of a killed node a new one is started at once,
at another address, as an operator does; with the head the whole cluster is new and the job is submitted again. Prints JSON: for
every kill the seconds until a step was recorded and until one that had never been reached was, and the comparison of
`benchmarks.rl_resume`. Exit status 1 if a prompt was not trained once, a step not recorded once, or a weight differs.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ray_nodes import Cluster
from benchmarks.refusal import check_runs, refusing
from benchmarks.rl_resume import SMALL, comparison, equal, records
from benchmarks.steps import Steps
from srl.commands.numbers import several

GROUPS = ["learner", "rollout", "rollout", "cpu"]
ON_NODES = ["learner.nodes.srl-role=learner", "rollout.nodes.srl-role=rollout", "reward.nodes.srl-role=cpu", "rollout.workers=2"]
BETWEEN, WITHIN_S = 2, 4.0  # steps that no one had reached before, and up to so many seconds, from one kill to the next
PATIENCE_S = 900.0  # for the next step


class Jobs:
    """One run, as jobs on the cluster: a job that ends before the run does is followed by another."""

    def __init__(self, cluster: Cluster, folder: Path, settings: list[str]):
        self.cluster, self.folder, self.settings = cluster, folder, settings
        self.steps = Steps(folder / "tiny")
        self.count = 0
        self.ended: list[str] = []
        self.submit()

    def submit(self) -> None:
        self.count += 1
        self.job = f"{self.folder.name}-{self.count}"
        self.cluster.submit(self.job, ["rl", f"run.directory={self.folder}", *SMALL, *ON_NODES, *self.settings])

    def work(self, steps: int | None) -> bool:
        """Until so many steps more than ever before are recorded, or, with None, to the end; False when the run is done.

        Raises RuntimeError when a job fails twice without a step, TimeoutError when nothing is recorded for `PATIENCE_S`.
        """
        goal = None if steps is None else self.steps.highest + steps
        heard, failed = time.monotonic(), 0
        while goal is None or self.steps.highest < goal:
            self.cluster.mend()
            if self.steps.look():
                heard, failed = time.monotonic(), 0
            status = self.cluster.status(self.job)
            if status == "SUCCEEDED":
                return False
            if status in ("FAILED", "STOPPED"):
                last = "\n".join(self.cluster.logs(self.job).splitlines()[-20:])
                self.ended.append(f"{self.job} {status}: {last[-500:]}")
                failed += 1
                if failed > 1:
                    raise RuntimeError(f"{self.job} {status}: {last}")
                self.submit()
            if time.monotonic() - heard > PATIENCE_S:
                raise TimeoutError(f"{self.folder}: no step for {PATIENCE_S:g} s\n{self.cluster.logs(self.job)[-2000:]}")
            time.sleep(0.5)
        return True

    def kill(self, group: str) -> None:
        self.steps.killed(group)
        self.cluster.kill(group)
        if group == "head":
            self.submit()


def alone(cluster: Cluster, folder: Path, settings: list[str]) -> Path:
    """The run without a kill; its folder."""
    jobs = Jobs(cluster, folder, settings)
    jobs.work(None)
    if jobs.ended:
        raise RuntimeError(f"the run left alone did not end well: {jobs.ended}")
    return folder / "tiny"


def disturbed(cluster: Cluster, folder: Path, victims: list[str], seed: int, settings: list[str]) -> Jobs:
    """The run in which a node of each of these groups is killed, one after the other; it has ended."""
    rng, jobs = random.Random(seed), Jobs(cluster, folder, settings)
    for group in victims:
        if not jobs.work(BETWEEN):
            break
        time.sleep(WITHIN_S * rng.random())
        jobs.steps.look()
        print(f"step {jobs.steps.highest}: {group} node killed", file=sys.stderr, flush=True)
        jobs.kill(group)
    jobs.work(None)
    jobs.steps.look()
    return jobs


def experiment(folder: Path, victims: list[str], seed: int, settings: list[str]) -> dict[str, Any]:
    """Both runs, on one cluster, and what the second lost."""
    cluster = Cluster(folder, GROUPS)
    try:
        cluster.begin()
        expected = alone(cluster, folder / "alone", settings)
        jobs = disturbed(cluster, folder / "killed", victims, seed, settings)
    finally:
        cluster.close()
    seconds = [record["seconds"] for record in records(expected, "metrics.jsonl")]
    return {
        "network namespaces": cluster.network.real,
        "kills": [{name: value for name, value in kill.items() if name != "at"} for kill in jobs.steps.kills],
        "median step s": round(median(seconds), 1),
        "steps": len(seconds),
        "steps done again": len(jobs.steps.times) - len(records(jobs.folder / "tiny", "metrics.jsonl")),
        "jobs that ended by themselves": jobs.ended,
        **comparison(expected, jobs.folder / "tiny"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    victims = ["learner", "rollout", "cpu", "head"]
    parser.add_argument("--victims", type=several(str, victims), default=victims)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("settings", nargs="*", default=["rl.steps=40"])
    options = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended in any case
    folder = options.folder or Path(tempfile.mkdtemp(prefix="srl-nodes-", dir="/tmp"))  # Ray's socket names have a limit
    with refusing(parser):
        check_runs([*SMALL, *options.settings], folder)
        result = experiment(folder, options.victims, options.seed, options.settings)
    print(json.dumps(result, indent=1))
    return 0 if equal(result) and len(result["kills"]) == len(options.victims) else 1


if __name__ == "__main__":
    sys.exit(main())
