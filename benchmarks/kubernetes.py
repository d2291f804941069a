"""The CPU demo as a job on the Kubernetes cluster of the current context, with pods killed, the job deleted, the head killed.

    python -m benchmarks.kubernetes [--namespace srl] [--overlay FOLDER] [--victims learner,rollout,cpu,job,head]
                                    [section.key=value ...]

Needs kubectl, the KubeRay operator, the namespace, and an image that the cluster can pull (the overlay's `images:`). `learner`,
`rollout` and `cpu` are pods deleted with --force, `head` the head pod likewise, and `job` is `kubectl delete rayjob` followed by
`kubectl apply`. Each comes during stage 2, when two new steps have been recorded since the last. Prints JSON: versions, how long
until the pods were ready and the first step was recorded, for every fault the seconds until a step was recorded and until one
that had never been reached was, what the documented commands said, and whether each prompt was trained and each step recorded
once.
Exit status 1 if one was not, the job did not succeed, or a fault is missing. The job and its run stay, to be looked at.
"""

import argparse
import base64
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ray_nodes import free_ports
from benchmarks.refusal import Failed, check_program, check_runs, refusing
from benchmarks.rl_resume import records, trained
from benchmarks.steps import Steps
from srl.commands.numbers import several

ROOT = Path(__file__).parents[1]
SHORT = [
    "stage1.prompts=40", "rl.steps=56", "rl.prompts=8", "rl.group=4", "rl.mini_batches=1", "rl.evaluate_every=8",
    "evaluate.problems=64", "evaluate.validation_problems=8", "learner.checkpoint_every=2",
]  # fmt: skip
VICTIMS = ["learner", "rollout", "cpu", "job", "head"]
BETWEEN = 2  # steps that no one had reached before, from one fault to the next
PATIENCE_S = 1200.0  # for the next thing to happen
ENDED = ("Complete", "Failed", "ValidationFailed")


class Kubectl:
    """Commands in one namespace. Raises Failed with what kubectl said."""

    def __init__(self, namespace: str):
        self.words = ["kubectl", "--namespace", namespace]

    def __call__(self, *words: str, text: str | None = None, seconds: float = 60) -> str:
        done = subprocess.run([*self.words, *words], input=text, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise Failed(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words: str) -> dict[str, Any]:
        """An object or a list of them; {} for one that is not there."""
        text = self("get", *words, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text else {}


class Job:
    """The overlay's RayJob, and what it does, as seen from outside. `history` has every state it was in, with the second."""

    def __init__(self, kubectl: Kubectl, overlay: Path, folder: Path, name: str, settings: list[str]):
        self.kubectl, self.run = kubectl, name
        self.documents = list(yaml.safe_load_all(kubectl("kustomize", str(overlay))))
        job = next(item for item in self.documents if item["kind"] == "RayJob")
        self.name = job["metadata"]["name"]
        job["spec"]["entrypoint"] = " ".join([job["spec"]["entrypoint"].strip(), f"run.name={self.run}", *SHORT, *settings])
        self.entrypoint = job["spec"]["entrypoint"]
        self.folder = folder / self.run
        self.folder.mkdir()
        self.steps = Steps(self.folder)
        self.history: list[dict[str, Any]] = []
        self.begun = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self.begun, 1)

    def apply(self) -> None:
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(self.documents))

    def status(self) -> dict[str, Any]:
        status = self.kubectl.get("rayjob", self.name).get("status", {})
        shown = ("jobDeploymentStatus", "jobStatus", "reason", "rayClusterName", "failed", "message")
        seen = {key: status[key] for key in shown if status.get(key)}
        if not self.history or {**self.history[-1], "s": 0} != {"s": 0, **seen}:
            self.history.append({"s": self.seconds(), **seen})
            print(self.history[-1], file=sys.stderr, flush=True)
        return status

    def pods(self, *selectors: str) -> list[dict[str, Any]]:
        """Those of the job's present cluster that are not being deleted."""
        cluster = self.status().get("rayClusterName")
        if not cluster:
            return []
        found = self.kubectl.get("pods", "-l", ",".join([f"ray.io/cluster={cluster}", *selectors])).get("items", [])
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def head(self) -> str:
        """Name of the head pod, "" where there is none."""
        return next((pod["metadata"]["name"] for pod in self.pods("ray.io/node-type=head")), "")

    def on_head(self, *words: str, seconds: float = 60) -> str:
        return self.kubectl("exec", self.head(), "-c", "ray-head", "--", *words, seconds=seconds)

    def fetch(self, name: str) -> None:
        """A file of the run, from the volume."""
        (self.folder / name).write_text(self.on_head("cat", f"/runs/{self.run}/{name}"))

    def readable(self) -> bool:
        """Whether there is a head that could be asked for the recorded steps; they are here now."""
        try:
            self.fetch("metrics.jsonl")
        except (Failed, subprocess.TimeoutExpired):  # no head, no file yet
            return False
        return True

    def look(self) -> int:
        """How many steps were recorded since the last look; 0 while no head can be asked."""
        self.readable()
        return self.steps.look()

    def work(self, steps: int | None) -> bool:
        """Until so many steps more than ever before are recorded, or, with None, to the end; False when the job has ended.

        Raises TimeoutError when nothing is recorded and no state changes for `PATIENCE_S`.
        """
        goal = None if steps is None else self.steps.highest + steps
        heard, states = time.monotonic(), 0
        while goal is None or self.steps.highest < goal:
            if self.look() or len(self.history) > states:
                heard, states = time.monotonic(), len(self.history)
            if self.status().get("jobDeploymentStatus") in ENDED:
                return False
            if time.monotonic() - heard > PATIENCE_S:
                raise TimeoutError(f"job {self.name}: neither a step nor another state for {PATIENCE_S:g} s")
            time.sleep(1)
        return True

    def wait(self, condition: Callable[[], object], what: str) -> float:
        """Seconds until it holds."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > PATIENCE_S:
                raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
            time.sleep(1)
        return round(time.monotonic() - begun, 1)


def ready(job: Job) -> bool:
    """Whether every pod that the cluster shall have is."""
    wanted = job.status().get("rayClusterStatus", {}).get("desiredWorkerReplicas", 0)
    pods = job.pods()
    conditions = [{one["type"]: one["status"] for one in pod["status"].get("conditions", [])} for pod in pods]
    return bool(wanted) and len(pods) > wanted and all(condition.get("Ready") == "True" for condition in conditions)


def harm(job: Job, victim: str) -> None:
    """One fault. Deleting the job waits for its end and applies it again."""
    cluster, at, gone = job.status()["rayClusterName"], time.monotonic(), None
    if victim == "job":
        job.kubectl("delete", "rayjob", job.name, seconds=PATIENCE_S)
        selector = f"ray.io/cluster={cluster}"
        job.wait(lambda: not job.kubectl.get("pods", "-l", selector).get("items"), f"the end of {cluster}'s pods")
        gone = round(time.monotonic() - at, 1)
        job.apply()
    else:
        selector = "ray.io/node-type=head" if victim == "head" else f"ray.io/group={victim}"
        [pod] = job.pods(selector)[:1]
        job.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    if victim in ("job", "head"):  # what the old driver still recorded is not the new one's
        job.wait(lambda: job.status().get("rayClusterName", cluster) != cluster and job.readable(), "a new cluster's head")
    job.look()
    job.steps.killed(victim, **({} if gone is None else {"pods gone after s": gone}))
    job.steps.kills[-1]["at"] = at


@contextlib.contextmanager
def forwarded(job: Job, port: int) -> Iterator[str]:
    """Address on this machine of the head pod's port."""
    (own,) = free_ports(1)
    command = [*job.kubectl.words, "port-forward", job.head(), f"{own}:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        if "Forwarding" not in (said := process.stdout.readline()):
            raise Failed(f"{' '.join(command)}: {said}")
        yield f"http://127.0.0.1:{own}"
    finally:
        process.kill()
        process.wait()


def answer(address: str, token: str = "") -> int:
    """HTTP status of the dashboard's list of jobs."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/", headers=headers), timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def watched(job: Job) -> dict[str, Any]:
    """What the commands that cluster/README.md gives for watching say, while the job runs."""
    secret = job.kubectl.get("secret", job.status()["rayClusterName"])
    token = base64.b64decode(secret["data"]["auth_token"]).decode()
    with forwarded(job, 8265) as dashboard:
        codes = {
            "without a token": answer(dashboard),
            "with a wrong one": answer(dashboard, "wrong"),
            "with it": answer(dashboard, token),
        }
    with forwarded(job, 8080) as metrics, urllib.request.urlopen(f"{metrics}/metrics", timeout=60) as reply:
        exported = {line.split("{")[0] for line in reply.read().decode().splitlines() if line.startswith("ray_srl_")}
    status = job.on_head("python", "-m", "srl.main", "status", "run.directory=/runs", f"name={job.run}", seconds=300)
    printed = job.kubectl("logs", job.head(), "-c", "ray-job-submitter", "--tail=-1").splitlines()
    return {
        "dashboard": codes,
        "metrics of srl on the head": len(exported),
        "status": status.splitlines(),
        "lines of the driver": len(printed),
    }


def experiment(job: Job, victims: list[str]) -> dict[str, Any]:
    """The job from apply to its end, with its faults, and what that took."""
    job.apply()
    result: dict[str, Any] = {"pods ready after s": job.wait(lambda: ready(job), "the cluster's pods")}
    job.look()  # steps of an earlier job with this run
    running = job.work(1)
    result["first step after s"] = job.seconds()
    if running:
        result["watched"] = watched(job)
    for victim in victims:
        if not job.work(BETWEEN):
            break
        harm(job, victim)
        print(f"step {job.steps.highest}: {victim}", file=sys.stderr, flush=True)
    job.work(None)
    result["ended after s"] = job.seconds()
    for name in ("metrics.jsonl", "ledger.jsonl"):
        job.fetch(name)
    job.steps.look()
    kills = [{name: value for name, value in kill.items() if name != "at"} for kill in job.steps.kills]
    once = [record["step"] for record in records(job.folder, "metrics.jsonl")]
    prompts = trained(job.folder)
    return {
        **result,
        "faults": kills,
        "states": job.history,
        "steps": len(once),
        "steps done again": len(job.steps.times) - len(once),
        "prompts trained once": prompts == list(range(len(prompts))) and bool(prompts),
        "steps recorded once": once == list(range(len(once))),
    }


def versions(kubectl: Kubectl) -> dict[str, Any]:
    said = json.loads(kubectl("version", "-o", "json"))
    label = "app.kubernetes.io/component=kuberay-operator"
    operators = kubectl.get("deployments", "--all-namespaces", "-l", label).get("items", [])
    nodes = kubectl.get("nodes")["items"]
    return {
        "kubernetes": said["serverVersion"]["gitVersion"],
        "operator": [item["spec"]["template"]["spec"]["containers"][0]["image"] for item in operators],
        "nodes": [
            {**{key: node["status"]["allocatable"].get(key) for key in ("cpu", "memory", "nvidia.com/gpu")},
             "runtime": node["status"]["nodeInfo"]["containerRuntimeVersion"]} for node in nodes
        ],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--namespace", default="srl")
    parser.add_argument("--overlay", type=Path, default=ROOT / "cluster" / "overlays" / "cpu-demo")
    parser.add_argument("--victims", type=several(str, VICTIMS), default=VICTIMS)
    parser.add_argument("--name", default=f"kubernetes-{int(time.time())}", help="of the run; one that is there is continued")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    kubectl = Kubectl(options.namespace)
    with tempfile.TemporaryDirectory(prefix="srl-kubernetes-") as folder, refusing(parser):
        check_runs([*SHORT, *options.settings])
        check_program("", "kubectl")
        job = Job(kubectl, options.overlay, Path(folder), options.name, options.settings)
        result = {**versions(kubectl), "entrypoint": job.entrypoint, **experiment(job, options.victims)}
    print(json.dumps(result, indent=1))
    once = result["prompts trained once"] and result["steps recorded once"]
    return 0 if once and job.status().get("jobStatus") == "SUCCEEDED" and len(result["faults"]) == len(options.victims) else 1


if __name__ == "__main__":
    sys.exit(main())
