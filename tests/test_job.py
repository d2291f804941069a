"""The job path on a Ray cluster with token authentication: submit, refuse, stop, continue; and what Prometheus sees."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.ray_nodes import RAY, Node, environment, free_ports
from srl.protocols.chat import model_folder

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "cluster" / "monitoring"
SMALL = [
    "stage1.prompts=120", "stage1.block=4", "stage1.attempts=2", "stage1.verdicts=1", "rl.steps=6", "rl.prompts=8", "rl.group=4",
    "rl.evaluate_every=1", "evaluate.validation_problems=8", "sft.epochs=1", "run.heartbeat_s=0.5", "run.log=json",
]  # fmt: skip


class Cluster:
    """One Ray head on ports of its own. Clients need its token."""

    def __init__(self, folder: Path):
        self.folder, self.token = folder, secrets.token_hex(32)
        self.gcs_port, dashboard, client = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        # Its own home, so that no token of the account is found or written.
        tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}
        self.environment = environment(folder, RAY_metrics_report_interval_ms="1000", **tokens)
        self.words = [
            "--head", "--num-cpus=8", "--labels=srl-role=all", "--object-store-memory=200000000", f"--port={self.gcs_port}",
            f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}",
            f"--temp-dir={folder / 'ray'}",
        ]  # fmt: skip
        self.node = Node(folder, self.environment, self.words)

    def is_up(self) -> bool:
        """Whether the node is there; one that took longer to start than Ray's 30 s is started again."""
        if self.node.process.poll() is not None:
            self.node.kill()
            self.node = Node(self.folder, self.environment, self.words)
        try:
            nodes = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        except (OSError, KeyError, TypeError):  # no dashboard yet
            return False
        return any(node["state"] == "ALIVE" for node in nodes)

    def ask(self, path: str) -> dict:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def cli(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        variables = {**self.environment, "RAY_AUTH_TOKEN": token or self.token}
        return subprocess.run([RAY, "job", *arguments], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300)

    def submit(self, job: str, *words: str) -> None:
        runtime = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "PYTHONPATH": str(ROOT)}}
        command = [sys.executable, "-m", "srl.main", *words, f"run.directory={self.folder / 'runs'}", *SMALL]
        done = self.cli("submit", "--no-wait", "--submission-id", job, "--runtime-env-json", json.dumps(runtime), "--", *command)
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self, job: str) -> str:
        return self.ask(f"/api/jobs/{job}")["status"]

    def logs(self, job: str) -> str:
        return self.cli("logs", job).stdout

    def srl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of srl on this machine, beside the job."""
        command = [sys.executable, "-m", "srl.main", *words, f"run.directory={self.folder / 'runs'}"]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300)

    def metrics(self) -> set[str]:
        """Names that the node serves now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.node.metrics_port}/metrics", timeout=30) as reply:
            return set(re.findall(r"^(ray_\w+)", reply.read().decode(), re.MULTILINE))


def wait_for(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    started = Cluster(Path("/tmp") / f"srl-job-{os.getpid()}")  # a short path: Ray's socket names have a limit
    started.folder.mkdir(exist_ok=True)
    try:
        wait_for(started.is_up, "the node")
        yield started
    finally:
        started.node.kill()
        shutil.rmtree(started.folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory):
    """Address of a Prometheus that scrapes the cluster during all tests here; None where it is not installed."""
    if not shutil.which("prometheus"):
        yield None
        return
    folder, (port,) = tmp_path_factory.mktemp("prometheus"), free_ports(1)
    jobs = [{"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{cluster.node.metrics_port}"]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"global": {"scrape_interval": "2s"}, "scrape_configs": jobs}))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(timeout=60)


@pytest.mark.parametrize(("headers", "code"), [({}, "401"), ({"Authorization": "Bearer wrong"}, "403")])
def test_the_dashboard_refuses_whoever_lacks_the_token(cluster: Cluster, headers: dict[str, str], code: str):
    with pytest.raises(urllib.error.HTTPError, match=code):
        urllib.request.urlopen(urllib.request.Request(f"{cluster.address}/api/jobs/", headers=headers), timeout=60)


def test_a_wrong_token_submits_nothing(cluster: Cluster):
    refused = cluster.cli("submit", "--no-wait", "--submission-id", "intruder", "--", "true", token="wrong" * 8)
    assert refused.returncode != 0 and "authentication" in refused.stderr
    assert "intruder" not in cluster.cli("list").stdout


def test_a_job_that_asks_for_too_much_ends_with_both_numbers(cluster: Cluster):
    cluster.submit("large", "run", "name=large", "rollout.workers=20", "learner.nodes.srl-role=learner", "run.nodes_wait_s=2")
    wait_for(lambda: cluster.status("large") == "FAILED", "the refusal")
    lines = [line for line in cluster.logs("large").splitlines() if line.startswith("srl: ")]
    assert len(lines) == 1 and re.search(r"(rollout|learner).workers=\d+ asked, \d+ of them fit", lines[0])
    assert "8 CPUs 0 GPUs srl-role=all" in lines[0]


def test_a_stopped_job_ends_cleanly_and_its_successor_continues(cluster: Cluster):
    samples = cluster.folder / "runs" / "tiny" / "stage1" / "samples"
    cluster.submit("first", "stage1")
    wait_for(lambda: list(samples.glob("*.parquet")), "the first samples")
    before = sorted(samples.glob("*.parquet"))
    stopped = cluster.cli("stop", "first")
    assert stopped.returncode == 0 and cluster.status("first") == "STOPPED"
    assert "stopping; what is done is kept" in cluster.logs("first")
    assert not list(cluster.folder.rglob("*.partial"))
    times = {file: file.stat().st_mtime_ns for file in before}
    cluster.submit("second", "stage1")
    wait_for(lambda: cluster.status("second") in ("SUCCEEDED", "FAILED"), "the second job")
    assert cluster.status("second") == "SUCCEEDED", cluster.logs("second")
    assert {file: file.stat().st_mtime_ns for file in before} == times, "finished samples were made again"
    ids = [row for file in samples.glob("*.parquet") for row in pq.read_table(file)["id"].to_pylist()]
    assert len(ids) == len(set(ids)) and len(list(samples.glob("*.parquet"))) > len(before)


def queried() -> dict[str, set[str]]:
    """Metric names in every dashboard panel's queries and every rule, by panel or rule."""
    names: dict[str, set[str]] = {}
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        names[panel["title"]] = {name for target in panel["targets"] for name in re.findall(r"\bray_\w+", target["expr"])}
    for rule in yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"][0]["rules"]:
        names[rule.get("alert") or rule["record"]] = set(re.findall(r"\bray_\w+", rule["expr"]))
    return names


# Exported only when such a thing happens, on a GPU, or by a phase that this test leaves out; the base model writes no verdicts.
NOT_IN_THIS_TEST = {
    "ray_srl_alarms_total", "ray_srl_sft_step", "ray_srl_sampler_sampled_tokens_total",
    "ray_srl_rl_validation_verdict_correct", "ray_srl_rl_validation_verdict_wrong",
    "ray_srl_learner_gpu_bytes", "ray_srl_critic_gpu_bytes",
}  # fmt: skip


def test_every_metric_of_dashboard_and_rules_is_exported_by_a_run(cluster: Cluster):
    run = cluster.folder / "runs" / "tiny"
    shutil.copytree(model_folder("embedded"), run / "checkpoints" / "ift")
    cluster.submit("rl", "rl")
    wanted = set().union(*queried().values()) - NOT_IN_THIS_TEST
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.update(cluster.metrics())
        return wanted <= seen or cluster.status("rl") in ("SUCCEEDED", "FAILED")

    wait_for(all_seen, "the metrics")
    missing = wanted - seen
    assert not missing, (missing, cluster.logs("rl")[-2000:])
    wait_for(lambda: cluster.status("rl") in ("SUCCEEDED", "FAILED"), "the job")
    assert cluster.status("rl") == "SUCCEEDED", cluster.logs("rl")
    lines = [json.loads(line) for line in cluster.logs("rl").splitlines() if line.startswith("{")]
    step = next(line for line in lines if "step   6/6" in line["message"])
    assert (step["run"], step["phase"], step["step"]) == ("tiny", "rl", 5)


def test_status_shows_the_run_and_writes_rays_timeline(cluster: Cluster):
    file = cluster.folder / "timeline.json"
    shown = cluster.srl("status", f"run.ray_address=127.0.0.1:{cluster.gcs_port}", "--timeline", str(file))
    assert shown.returncode == 0, shown.stderr
    assert "finished what was asked for" in shown.stdout and re.search(r"^done: .*rl \d", shown.stdout, re.MULTILINE)
    assert "latest: rl" in shown.stdout
    assert re.search(r"^rollout 0 .*sampled_tokens=\d", shown.stdout, re.MULTILINE)
    assert any("Learner" in event["cat"] for event in json.loads(file.read_text()))


def test_the_token_is_in_no_file_of_the_run_and_in_no_log(cluster: Cluster):
    files = [file for file in (cluster.folder / "runs").rglob("*") if file.is_file()]
    assert files and not any(cluster.token.encode() in file.read_bytes() for file in files)
    assert not any(cluster.token in cluster.logs(job) for job in ("large", "first", "second", "rl"))


def test_every_query_of_the_dashboard_returns_data(prometheus: str | None):
    if prometheus is None:
        pytest.skip("prometheus (Debian package) is not installed")
    now, empty = time.time(), {}
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            words = {"query": target["expr"].replace("$run", ".*"), "start": now - 1800, "end": now, "step": 5}
            with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(words)}", timeout=60) as reply:
                if not json.load(reply)["data"]["result"]:
                    empty.setdefault(panel["title"], []).append(target["expr"])
    # Nothing is fine-tuned in these jobs, no verdicts are written, and there is no GPU.
    rare = NOT_IN_THIS_TEST - {"ray_srl_sampler_sampled_tokens_total"}
    missing = {title: [query for query in queries if not any(name in query for name in rare)] for title, queries in empty.items()}
    assert not any(missing.values()), missing


def test_every_panel_and_alert_asks_for_a_metric_of_srl():
    assert all(any(name.startswith("ray_srl_") for name in names) for names in queried().values())
