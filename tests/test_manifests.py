"""Every manifest of cluster/, rendered, against the schemas that the API server would use and the KubeRay operator's own rules.

No API server is asked: the manifests have never been applied to a cluster by these tests.
"""

import copy
import functools
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kustomization import apply, render

from srl.config import Config, load_config
from srl.driver.cluster import CALLS_KEPT

ROOT = Path(__file__).parents[1]
CRDS = ROOT.parent / "shared" / "crds"
OVERLAYS = ["cpu-demo", "one-node", "several-nodes", "standing"]
KUSTOMIZATIONS = [*(f"overlays/{name}" for name in OVERLAYS), "queue", "monitoring"]
CORE = {"v1", "networking.k8s.io/v1"}
RAYJOB, POD = "/spec/rayClusterSpec", "template/spec"


@functools.cache
def rendered(name: str) -> list[dict]:
    return render(ROOT / "cluster" / name)


def document(name: str, kind: str) -> dict:
    return copy.deepcopy(next(item for item in rendered(name) if item["kind"] == kind))


@functools.cache
def checker(name: str):
    if not CRDS.is_dir():
        pytest.skip(f"{CRDS} with the schemas is not on this machine")
    spec = importlib.util.spec_from_file_location(name, CRDS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def schemas() -> dict:
    return checker("crd_validate").load_crds(CRDS)


def errors(item: dict) -> list[str]:
    """What the API server or the operator would say, and a kind that nothing here can check."""
    if item["apiVersion"] in CORE:
        try:
            kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        return []
    found, _ = checker("crd_validate").check(item, schemas())
    assert found is not None, f"no schema for {item['apiVersion']} {item['kind']}"
    return found + (checker("kuberay_rules").check(item) or [])


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_custom_resources_pass_schema_and_operator_rules(name: str):
    checked = [item for item in rendered(name) if item["apiVersion"] not in CORE]
    assert checked and [error for item in checked for error in errors(item)] == []


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_core_kinds_pass_their_schemas(name: str):
    assert [error for item in rendered(name) if item["apiVersion"] in CORE for error in errors(item)] == []


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_the_renderer_of_these_tests_agrees_with_kustomize(name: str):
    for tool in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(tool[0]):
            break
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    output = subprocess.run([*tool, str(ROOT / "cluster" / name)], capture_output=True, text=True, check=True).stdout
    theirs = list(yaml.safe_load_all(output))

    def order(items: list[dict]) -> list[str]:
        return sorted(json.dumps(item, sort_keys=True) for item in items)

    assert order(rendered(name)) == order(theirs)


BROKEN = {
    "a misspelt field": ("RayJob", "/spec/shutDownAfterJobFinishes", True, "shutDownAfterJobFinishes"),
    "a number where a string belongs": ("RayJob", f"{RAYJOB}/headGroupSpec/rayStartParams/num-cpus", 0, "num-cpus"),
    "a submission mode that does not exist": ("RayJob", "/spec/submissionMode", "SideCarMode", "submissionMode"),
    "a name too long for the operator": ("RayJob", "/metadata/name", "a" * 48, "47 characters"),
    "a Ray without token authentication": ("RayJob", f"{RAYJOB}/rayVersion", "2.51.0", "2.52.0"),
    "a time to live without a shutdown": ("RayJob", "/spec/shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
    "an autoscaled job in a Kueue queue": ("RayJob", f"{RAYJOB}/enableInTreeAutoscaling", True, "elastic-job"),
    "a feature behind an alpha gate": ("RayJob", f"{RAYJOB}/networkPolicy", {}, "feature gate"),
    "a head that restarts beside its submitter": ("RayJob", f"{RAYJOB}/headGroupSpec/{POD}/restartPolicy", "Always", "Never"),
    "a deadline of zero": ("RayJob", "/spec/preRunningDeadlineSeconds", 0, "preRunningDeadlineSeconds"),
    "labels among the start parameters": ("RayJob", f"{RAYJOB}/workerGroupSpecs/0/rayStartParams/labels", "a=b", "labels"),
    "a memory size that is none": (
        "RayJob", f"{RAYJOB}/workerGroupSpecs/0/{POD}/containers/0/resources/limits/memory", "4 gigabytes", "4 gigabytes",
    ),
    "fewer replicas at most than at least": ("RayJob", f"{RAYJOB}/workerGroupSpecs/1/maxReplicas", 1, "minReplicas"),
    "a runtime environment that is no mapping": ("RayJob", "/spec/runtimeEnvYAML", "- a", "runtimeEnvYAML"),
    "a metrics port without a name": ("PodMonitor", "/spec/podMetricsEndpoints", "metrics", "podMetricsEndpoints"),
    "a queue without its cluster queue's type": ("LocalQueue", "/spec/clusterQueue", 3, "clusterQueue"),
    "a policy that names no type": ("NetworkPolicy", "/spec/policyTypes", "Ingress", "Ingress"),
    "a volume without a size": ("PersistentVolumeClaim", "/spec/resources/requests/storage", [], "[] is not valid"),
}  # fmt: skip


@pytest.mark.parametrize("variant", BROKEN)
def test_each_broken_variant_is_caught(variant: str):
    kind, path, value, expected = BROKEN[variant]
    broken = document("overlays/several-nodes", kind)
    assert errors(broken) == []
    apply(broken, {"op": "add", "path": path, "value": value})
    assert expected in "\n".join(errors(broken))


def pods(item: dict) -> list[dict]:
    cluster = item["spec"].get("rayClusterSpec", item["spec"])
    return [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


def ray_documents() -> list[dict]:
    return [item for name in OVERLAYS for item in rendered(f"overlays/{name}") if item["kind"] in ("RayJob", "RayCluster")]


def test_no_pod_runs_as_root_or_may_become_root():
    for pod in (pod for item in ray_documents() for pod in pods(item)):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_every_pod_outlives_the_drivers_clean_up_and_rays_drain():
    drain_s = 30
    for item in ray_documents():
        stop = yaml.safe_load(item["spec"].get("runtimeEnvYAML", "{}"))
        wait_s = int(stop.get("env_vars", {}).get("RAY_JOB_STOP_WAIT_TIME_S", 0))
        for pod in pods(item):
            assert pod["terminationGracePeriodSeconds"] > drain_s + wait_s


def test_every_cluster_asks_for_a_token_and_every_pod_mounts_the_runs():
    for item in ray_documents():
        assert item["spec"].get("rayClusterSpec", item["spec"])["authOptions"]["mode"] == "token"
        for pod in pods(item):
            claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: claims[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounts["/runs"] == "srl-runs"


def test_every_head_remembers_as_many_calls_as_a_local_ray():
    for item in ray_documents():
        head, *workers = [{entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]} for pod in pods(item)]
        assert head.pop("RAY_task_events_max_num_task_in_gcs") == str(CALLS_KEPT)
        assert all(worker == head for worker in workers)


def capacity(item: dict) -> dict[str, dict[str, float]]:
    """CPUs and GPUs of all pods of a group, by its srl-role."""
    return {
        group["labels"]["srl-role"]: {
            kind: group["replicas"] * float(group["template"]["spec"]["containers"][0]["resources"]["limits"].get(key, 0))
            for kind, key in (("cpus", "cpu"), ("gpus", "nvidia.com/gpu"))
        }
        for group in item["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }


def entrypoint(item: dict) -> Config:
    """The configuration that the job's command line resolves to."""
    words = item["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "srl.main", "run"]
    named = words.index("--config") if "--config" in words else None
    overrides = [word for word in words[4:] if "=" in word]
    return load_config(words[named + 1] if named else None, overrides)


@pytest.mark.parametrize("name", ["cpu-demo", "one-node", "several-nodes"])
def test_the_entrypoint_loads_and_its_actors_fit_the_groups_they_name(name: str):
    item = document(f"overlays/{name}", "RayJob")
    config, room = entrypoint(item), capacity(item)
    assert config.run.directory == "/runs"
    assert config.run.nodes_wait_s < item["spec"]["preRunningDeadlineSeconds"], "the operator gives up before the run does"
    for part in (config.learner, config.rollout, config.reward):
        place = room[part.nodes["srl-role"]]
        assert part.workers * part.cpus <= place["cpus"]
        assert part.workers * getattr(part, "gpus", 0) == place["gpus"]


def test_the_queues_quota_holds_the_largest_job():
    quota = document("queue", "ClusterQueue")["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    room = capacity(document("overlays/several-nodes", "RayJob"))
    head = document("overlays/several-nodes", "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    cpus = sum(place["cpus"] for place in room.values()) + float(head["containers"][0]["resources"]["limits"]["cpu"])
    limits = {entry["name"]: entry["nominalQuota"] for entry in quota}
    assert limits["cpu"] >= cpus and limits["nvidia.com/gpu"] >= sum(place["gpus"] for place in room.values())
