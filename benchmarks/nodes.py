"""Several Ray nodes on one machine, and kill -9 of one of them in the middle of an RL run.

    python -m benchmarks.nodes --kill none rollout cpu learner

Starts a head without CPUs for work, a learner node, two rollout nodes and a CPU node, each with ports, CPUs and a label of its
own; runs `rl` on a shrunken configuration; after the first step kills every process of the named node and, as an operator
would, starts a new one. A run that ends with an error is started again with the same command, as a job's retry does.
Prints one JSON line per case: attempts, seconds, whether every RL step was recorded once, what the watchdog said.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import ray

from srl.protocols.chat import model_folder

NODES = {"learner": 2, "rollout-a": 2, "rollout-b": 2, "cpu": 3}  # name: CPUs
SETTINGS = [
    "rl.steps=4", "rl.prompts=8", "rl.group=4", "rl.evaluate_every=2", "evaluate.validation_problems=8", "rollout.workers=2",
    "rollout.threads=1", "learner.threads=1", "run.heartbeat_s=1", "learner.nodes.srl-role=learner",
    "rollout.nodes.srl-role=rollout", "reward.nodes.srl-role=cpu",
]  # fmt: skip
DEADLINE_S = 600


class Cluster:
    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_raylet_start_wait_time_s": "120", "RAY_DEDUP_LOGS": "0",
        }  # fmt: skip
        self.port, dashboard, client = free_ports(3)
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        self.nodes: dict[str, subprocess.Popen] = {}
        head = [f"--port={self.port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        self.nodes["head"] = self._start("head", 0, ["--head", *head, f"--temp-dir={folder / 'ray'}"])

    def start(self, name: str) -> None:
        self.nodes[name] = self._start(name.split("-")[0], NODES[name], [f"--address={self.address}"])

    def _start(self, role: str, cpus: int, options: list[str]) -> subprocess.Popen:
        metrics, agent, agent_grpc = free_ports(3)
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", f"--num-cpus={cpus}", f"--labels=srl-role={role}",
            "--object-store-memory=100000000", f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", "--min-worker-port=0", "--max-worker-port=0", *options,
        ]  # fmt: skip
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, name: str) -> None:
        """Every process of the node at once, without warning."""
        parent = psutil.Process(self.nodes.pop(name).pid)
        for process in [*parent.children(recursive=True), parent]:
            process.send_signal(signal.SIGKILL)

    def alive(self) -> int:
        """Nodes that the head counts as alive."""
        script = f"import ray; ray.init('{self.address}', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        done = subprocess.run([sys.executable, "-c", script], env=self.environment, capture_output=True, text=True, timeout=120)
        return int(done.stdout.split()[-1]) if done.returncode == 0 else 0

    def close(self) -> None:
        for name in list(self.nodes):
            self.kill(name)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {DEADLINE_S} s for {what}")
        time.sleep(0.5)


def steps(run: Path) -> list[int]:
    """RL steps in the order of their records."""
    file = run / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [record["step"] for record in records if record["phase"] == "rl"]


def case(cluster: Cluster, kill: str) -> dict:
    """One run, with the kill after its first step."""
    runs = cluster.folder / "runs"
    run = runs / kill
    shutil.copytree(model_folder("embedded"), run / "checkpoints" / "ift")
    command = [
        sys.executable, "-m", "srl.main", "rl", f"run.name={kill}", f"run.directory={runs}", f"run.ray_address={cluster.address}",
        *SETTINGS,
    ]  # fmt: skip
    started, log, killed = time.monotonic(), run / "log.txt", 0.0
    with log.open("a") as output:
        for attempt in (1, 2, 3):
            process = subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=subprocess.STDOUT)
            if kill != "none" and attempt == 1:
                wait_for(lambda process=process: steps(run) or process.poll() is not None, "the first step")
                name = next(name for name in cluster.nodes if name.startswith(kill))
                cluster.kill(name)
                killed = time.monotonic()
                cluster.start(name)
            if process.wait(timeout=DEADLINE_S) == 0:
                break
    seconds, done = time.monotonic() - started, steps(run)
    alarms = [line.strip()[:200] for line in log.read_text().splitlines() if line.strip().startswith("ALARM")]
    return {
        "kill": kill, "attempts": attempt, "exit": process.returncode, "seconds": round(seconds, 1),
        "seconds_after_kill": round(time.monotonic() - killed, 1) if killed else 0.0,
        "steps_recorded": done, "every_step_once": sorted(done) == list(range(4)), "alarms": alarms,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kill", nargs="+", choices=["none", "rollout", "cpu", "learner"], default=["none", "rollout"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="srl-nodes-", dir="/tmp"))  # short: Ray's socket names have a limit
    cluster = Cluster(folder)
    try:
        wait_for(lambda: cluster.alive() == 1, "the head")
        for name in NODES:
            cluster.start(name)
        wait_for(lambda: cluster.alive() == 1 + len(NODES), "all nodes")
        for kill in options.kill:
            print(json.dumps(case(cluster, kill)), flush=True)
    finally:
        cluster.close()
        shutil.rmtree(folder / "ray", ignore_errors=True)


if __name__ == "__main__":
    main()
