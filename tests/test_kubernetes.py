"""benchmarks.kubernetes against a stand-in for kubectl: what it sends, and from when it counts."""

import json
from pathlib import Path

import yaml

from benchmarks import kubernetes
from benchmarks.refusal import Failed

ROOT = Path(__file__).parents[1]


class Kubectl:
    """A cluster that replaces a deleted head by another cluster, whose head is there after two questions."""

    def __init__(self, rendered: str):
        self.rendered, self.cluster, self.questions = rendered, "srl-a", 9
        self.applied: list[dict] = []
        self.steps = [0, 1]

    def __call__(self, *words: str, text: str | None = None, seconds: float = 60) -> str:
        if words[0] == "kustomize":
            return self.rendered
        if words[0] == "apply":
            self.applied = list(yaml.safe_load_all(text))
        if words[0] == "delete":
            assert words[1:] == ("pod", "srl-a-head", "--grace-period=0", "--force")
            self.steps.append(2)  # the old driver's last
            self.cluster, self.questions = "srl-b", 0
        if words[0] == "exec":
            self.questions += 1
            if self.questions < 3:
                raise Failed("container not found")
            return "".join(json.dumps({"phase": "rl", "step": step, "seconds": step + 0.5}) + "\n" for step in self.steps)
        return ""

    def get(self, *words: str) -> dict:
        if words[0] == "rayjob":
            return {"status": {"rayClusterName": self.cluster, "jobDeploymentStatus": "Running"}}
        return {"items": [{"metadata": {"name": f"{self.cluster}-head"}, "status": {}}]}


def job(folder: Path) -> kubernetes.Job:
    entry = {
        "kind": "RayJob",
        "metadata": {"name": "srl"},
        "spec": {"entrypoint": "python -m srl.main run run.directory=/runs\n"},
    }
    return kubernetes.Job(Kubectl(yaml.safe_dump(entry)), ROOT, folder, "mine", ["rl.steps=3"])


def test_the_job_is_the_overlays_with_a_run_of_its_own(tmp_path: Path):
    started = job(tmp_path)
    started.apply()
    words = started.kubectl.applied[0]["spec"]["entrypoint"].split()
    assert words[:5] == ["python", "-m", "srl.main", "run", "run.directory=/runs"]
    assert "run.name=mine" in words and words[-1] == "rl.steps=3", "the caller's settings go over the short ones"


def test_what_the_old_driver_still_recorded_does_not_count_as_the_new_ones_step(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(kubernetes.time, "sleep", lambda seconds: None)
    running = job(tmp_path)
    assert running.look() == 2
    kubernetes.harm(running, "head")
    [fault] = running.steps.kills
    assert fault["step"] == 2 and "next step after s" not in fault
    running.kubectl.steps.append(3)
    assert running.look() == 1 and running.steps.kills[0]["new step after s"] >= 0
