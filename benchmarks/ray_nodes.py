"""Ray nodes on this machine: each `ray start` with its own ports, labels and, for root, its own network namespace."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
MARK = "SRL_NODE"
START_S = 300.0  # until a node is seen by the head, on a busy machine


def free_ports(count: int) -> list[int]:
    """Of this machine, or of the network namespace this is called in; nothing keeps others from taking them."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """For `ray start` and for clients: without what this process was told about Ray, with a home of its own."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "HOME": str(folder), "RAY_TMPDIR": str(folder / "ray"), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **variables,
    }  # fmt: skip


class Node:
    """One `ray start --block`; `where` is the command that runs it in another network."""

    def __init__(self, folder: Path, variables: Mapping[str, str], words: Sequence[str], where: Sequence[str] = ()):
        agent, agent_grpc, self.metrics_port = free_ports(3)
        command = [
            *where, RAY, "start", "--block", f"--metrics-export-port={self.metrics_port}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}", *words,
        ]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        with (folder / "nodes.log").open("a") as log:
            self.process = subprocess.Popen(command, env={**variables, MARK: self.mark}, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """Every process of the node, with -9, also those whose parents are gone."""
        while processes := marked(self.mark):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)
        self.process.wait(timeout=60)


def marked(mark: str) -> list[psutil.Process]:
    """Processes that have it in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, a zombie, or another user's
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


class Network:
    """A bridge with a network namespace for each node; who may not make one has all nodes on 127.0.0.1."""

    def __init__(self) -> None:
        self.name = f"srl{os.getpid() % 10**6}"
        self.prefix = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.spaces: list[str] = []
        self.real = bool(shutil.which("ip")) and self._ip("link", "add", self.name, "type", "bridge", check=False)
        if self.real:
            self._ip("addr", "add", f"{self.prefix}.1/24", "dev", self.name)
            self._ip("link", "set", self.name, "up")

    def add(self) -> tuple[list[str], str]:
        """Command that runs another one in a new namespace, and the address in there."""
        if not self.real:
            return [], "127.0.0.1"
        number = len(self.spaces) + 2
        space, outside = f"{self.name}-{number}", f"{self.name}v{number}"
        self._ip("netns", "add", space)
        self.spaces.append(space)
        self._ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("link", "set", outside, "master", self.name)
        self._ip("link", "set", outside, "up")
        address = f"{self.prefix}.{number}"
        self._ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            self._ip("-n", space, "link", "set", device, "up")
        self._ip("-n", space, "route", "add", "default", "via", f"{self.prefix}.1")
        return ["ip", "netns", "exec", space], address

    def close(self) -> None:
        for space in self.spaces:
            self._ip("netns", "delete", space, check=False)
        if self.real:
            self._ip("link", "delete", self.name, check=False)

    @staticmethod
    def _ip(*words: str, check: bool = True) -> bool:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
        return not done.returncode


class Cluster:
    """A head without CPUs and one node per entry of `groups`, which may repeat; a node's label is srl-role=GROUP.

    `begin` starts it; close it in any case.
    """

    def __init__(self, folder: Path, groups: Sequence[str], cpus: int = 2):
        self.folder, self.groups, self.cpus = folder, groups, cpus
        self.network = Network()
        self.variables = environment(folder, RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="eth0")
        if not self.network.real:
            del self.variables["GLOO_SOCKET_IFNAME"]
        self.nodes: list[tuple[str, Node]] = []

    def begin(self) -> None:
        """All nodes, new; waits until the head sees them."""
        self._start_head()
        self._wait()
        for group in self.groups:  # one after the other: on a busy machine Ray's 30 s for a node are too few for all at once
            self.add(group)
            self._wait()

    def _start_head(self) -> None:
        where, address = self.network.add()
        port, dashboard, client = free_ports(3)
        self.address, self.dashboard = f"{address}:{port}", f"http://{address}:{dashboard}"
        words = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=0.0.0.0", "--num-cpus=0"]
        words += [f"--ray-client-server-port={client}", f"--temp-dir={self.folder / 'ray'}"]
        self._start("head", where, address, words)

    def mend(self) -> None:
        """Start those again that ended by themselves, as an operator does: Ray's nodes give up when they start too slowly."""
        for group, node in list(self.nodes):
            if node.process.poll() is None:
                continue
            node.kill()
            self.nodes.remove((group, node))
            if group != "head":
                self.add(group)
            elif not self.nodes:
                self._start_head()
            else:
                raise RuntimeError(f"the head ended by itself: see {self.folder / 'nodes.log'}")

    def add(self, group: str) -> None:
        where, address = self.network.add()
        self._start(group, where, address, [f"--address={self.address}", f"--num-cpus={self.cpus}", f"--labels=srl-role={group}"])

    def kill(self, group: str) -> None:
        """A node of the group with -9, and another started in its place; of the head, all nodes and a new cluster."""
        if group == "head":
            for _, node in self.nodes:  # the head first; without it the others end by themselves after a minute
                node.kill()
            self.nodes = []
            self.begin()
        else:
            index = next(index for index, (name, _) in enumerate(self.nodes) if name == group)
            self.nodes.pop(index)[1].kill()
            self.add(group)

    def submit(self, job: str, words: Sequence[str]) -> None:
        command = [RAY, "job", "submit", "--no-wait", "--submission-id", job, "--address", self.dashboard]
        runtime = {"env_vars": {"PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}}
        command += ["--runtime-env-json", json.dumps(runtime), "--", sys.executable, "-m", "srl.main", *words]
        done = subprocess.run(command, env=self.variables, cwd=ROOT, capture_output=True, text=True, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"ray job submit: {done.stdout}{done.stderr}")

    def status(self, job: str) -> str:
        return self._ask(f"/api/jobs/{job}")["status"]

    def logs(self, job: str) -> str:
        return self._ask(f"/api/jobs/{job}/logs")["logs"]

    def alive(self) -> set[str]:
        """Ids of the nodes that the head believes alive."""
        nodes = self._ask("/api/v0/nodes")["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def close(self) -> None:
        for _, node in self.nodes:
            node.kill()
        self.network.close()

    def _start(self, group: str, where: list[str], address: str, words: list[str]) -> None:
        words += [f"--node-ip-address={address}", "--object-store-memory=100000000"]
        self.nodes.append((group, Node(self.folder, self.variables, words, where)))

    def _wait(self) -> None:
        """Until the head sees as many nodes as there are."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, KeyError, TypeError):  # the head does not answer yet
                if len(self.alive()) == len(self.nodes):
                    return
            self.mend()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {START_S:g} s for {len(self.nodes)} nodes: see {self.folder / 'nodes.log'}")
            time.sleep(0.3)

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.dashboard + path, timeout=30) as reply:
            return json.load(reply)
