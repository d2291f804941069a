"""How the experiment with nodes finds processes and follows jobs, without Ray."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from benchmarks.nodes import Jobs
from benchmarks.ray_nodes import MARK, marked


def test_a_nodes_processes_are_found_although_their_parent_is_gone():
    mark = uuid.uuid4().hex
    # The first process starts a second one and ends.
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, MARK: mark}, check=True)
    (orphan,) = marked(mark)
    orphan.kill()
    psutil.wait_procs([orphan], timeout=10)
    assert marked(mark) == []


class FakeCluster:
    """Its jobs record a step each time they are asked for, until one has the fate that it was given."""

    def __init__(self, run: Path, fates: list[str], steps: int):
        self.run, self.fates, self.steps, self.submitted, self.killed = run, fates, steps, [], []

    def submit(self, job: str, words: list[str]) -> None:
        self.submitted.append(job)
        self.run.mkdir(parents=True, exist_ok=True)

    def mend(self) -> None:
        with (self.run / "metrics.jsonl").open("a") as file:
            step = len((self.run / "metrics.jsonl").read_text().splitlines())
            if step < self.steps:
                file.write(json.dumps({"phase": "rl", "step": step, "seconds": 1.0}) + "\n")

    def status(self, job: str) -> str:
        done = len((self.run / "metrics.jsonl").read_text().splitlines()) >= self.steps
        return self.fates[len(self.submitted) - 1] if done else "RUNNING"

    def logs(self, job: str) -> str:
        return f"what {job} said"

    def kill(self, group: str) -> None:
        self.killed.append(group)


def jobs(folder: Path, fates: list[str], steps: int = 4) -> Jobs:
    return Jobs(FakeCluster(folder / "tiny", fates, steps), folder, [])


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_a_run_is_worked_on_until_so_many_new_steps_are_recorded_and_then_to_its_end(tmp_path: Path):
    run = jobs(tmp_path, ["SUCCEEDED"])
    assert run.work(2) and run.steps.highest == 1
    run.kill("rollout")
    assert not run.work(None) and run.cluster.killed == ["rollout"] and len(run.cluster.submitted) == 1
    assert run.steps.kills[0]["step"] == 1 and "new step after s" in run.steps.kills[0]


def test_with_the_head_the_job_is_gone_and_submitted_again_under_another_name(tmp_path: Path):
    run = jobs(tmp_path, ["SUCCEEDED", "SUCCEEDED"])
    run.work(1)
    run.kill("head")
    assert len(set(run.cluster.submitted)) == 2


def test_a_job_that_ends_by_itself_is_told_and_followed_by_another(tmp_path: Path):
    run = jobs(tmp_path, ["FAILED", "SUCCEEDED"])
    assert not run.work(None)
    assert len(run.ended) == 1 and "FAILED" in run.ended[0] and "what " in run.ended[0]


def test_two_jobs_that_fail_without_a_step_between_are_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError, match="FAILED"):
        jobs(tmp_path, ["FAILED", "FAILED"]).work(None)
