import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_resource_state

from srl.config import Config, ConfigError, load_config
from srl.driver import cluster
from srl.driver.resources import Node, alive_nodes, demand, shortage


def config(*overrides: str) -> Config:
    return load_config(None, list(overrides))


def test_the_default_fits_its_local_ray_and_not_two_cpus():
    # rollout 1 + learner 1 + reward 0.25 + pipelines 1
    assert shortage(config(), [Node("a", 4, 0)]) is None
    assert shortage(config(), [Node("a", 2, 0)]) == (
        "reward.workers=1 asked, 0 of them fit: each needs 0.25 CPUs and 0 GPUs, beside the other actors; "
        "in the cluster: a 2 CPUs 0 GPUs"
    )
    assert shortage(config(), [Node("a", 3, 0)]).startswith("stage 1's pipelines need 1 CPU")


def test_gpus_spread_over_nodes_do_not_make_one_large_actor():
    asked = config("rollout.gpus=4", "rollout.tensor_parallel=4", "learner.gpus=0")
    assert shortage(asked, [Node("a", 8, 2), Node("b", 8, 2)]).startswith(
        "rollout.workers=1 asked, 0 of them fit: each needs 1 CPUs and 4"
    )
    assert shortage(asked, [Node("a", 8, 4)]) is None


def test_actors_that_name_a_label_fit_only_there():
    learner, rollout = Node("a", 8, 0, {"srl-role": "learner"}), Node("b", 8, 0, {"srl-role": "rollout"})
    asked = config("rollout.workers=9", "rollout.nodes.srl-role=rollout")
    message = shortage(asked, [learner, rollout])
    assert message.startswith("rollout.workers=9 asked, 8 of them fit") and "on a node with srl-role=rollout" in message
    assert "a 8 CPUs 0 GPUs srl-role=learner; b 8 CPUs 0 GPUs srl-role=rollout" in message
    assert shortage(config("rollout.workers=8", "rollout.nodes.srl-role=rollout"), [learner, rollout]) is None


def test_actors_without_gpus_leave_gpu_nodes_to_those_with():
    # If grading took CPUs of the GPU node first, the learners would not fit there.
    asked = config("learner.workers=2", "learner.gpus=1", "learner.cpus=4", "reward.workers=8", "reward.cpus=1")
    assert shortage(asked, [Node("gpu", 8, 2), Node("cpu", 10, 0)]) is None


def test_a_critic_needs_the_learners_room_again():
    asked = config("credit.advantage=gae", "learner.gpus=1", "rollout.gpus=1")
    assert "learner.workers=1 asked again for the critic, 0 of them fit" in shortage(asked, [Node("a", 8, 2)])
    assert shortage(asked, [Node("a", 8, 3)]) is None


def test_judges_that_are_reward_models_take_a_learners_room_for_each_engine():
    asked = config("protocol.judge=runs/x/checkpoints/orm", "learner.gpus=1", "rollout.gpus=1", "rollout.workers=2")
    assert shortage(asked, [Node("a", 9, 4)]).startswith(
        "rollout.workers=2 asked and as many judges (protocol.judge), 1 of them fit: each needs 1 CPUs and 1 GPUs"
    )
    assert shortage(asked, [Node("a", 9, 5)]) is None
    elsewhere = config("protocol.judge=served", "learner.gpus=1", "rollout.gpus=1", "rollout.workers=2")
    assert shortage(elsewhere, [Node("a", 9, 3)]) is None


def test_an_evaluation_needs_no_room_for_learners_but_where_engines_share_it():
    asked = config("learner.gpus=1", "rollout.gpus=1", "credit.advantage=gae")
    assert shortage(asked, [Node("a", 8, 1)], trains=False) is None
    assert shortage(asked, [Node("a", 8, 2)]).startswith("learner.workers=1 asked")
    judged = config("learner.gpus=1", "rollout.gpus=1", "protocol.judge=runs/x/checkpoints/orm")
    assert shortage(judged, [Node("a", 8, 2)], trains=False) is None
    assert "as many judges" in shortage(judged, [Node("a", 8, 1)], trains=False)
    beside = config("rollout.colocate=true", "learner.gpus=1", "rollout.gpus=1")
    assert shortage(beside, [Node("a", 8, 0)], trains=False).startswith("learner.workers=1 asked, each with an engine")


def test_an_engine_beside_a_learner_needs_cpus_and_no_gpu_of_its_own():
    asked = config(
        "rollout.colocate=true", *(f"{part}.{what}" for part in ("learner", "rollout") for what in ("workers=2", "gpus=1"))
    )
    assert shortage(asked, [Node("a", 8, 2)]) is None
    assert shortage(asked, [Node("a", 8, 1)]).startswith(
        "learner.workers=2 asked, each with an engine beside it, 1 of them fit: each needs 2 CPUs and 1 GPUs"
    )


def test_what_an_autoscaler_is_asked_for_is_every_actor_with_its_labels():
    asked = config("learner.workers=2", "learner.gpus=1", "learner.cpus=4", "learner.nodes.srl-role=learner", "reward.workers=2")
    rollout, pipelines, grader, learner = {"CPU": 1}, {"CPU": 1}, {"CPU": 0.25}, {"CPU": 4, "GPU": 1}
    place = {"srl-role": "learner"}
    assert demand(asked, True) == ([pipelines, grader, grader, learner, learner, rollout], [{}, {}, {}, place, place, {}])
    assert demand(asked, False) == ([pipelines, grader, grader, rollout], [{}] * 4)


def test_dead_nodes_do_not_count():
    node = {"NodeManagerAddress": "a", "Resources": {"CPU": 4.0, "memory": 1e9}, "Labels": {"ray.io/node-id": "x"}, "Alive": True}
    assert alive_nodes([node, {**node, "Alive": False}]) == [Node("a", 4.0, 0.0, {"ray.io/node-id": "x"})]
    assert str(alive_nodes([node])[0]) == "a 4 CPUs 0 GPUs"


def test_without_an_address_or_with_local_a_run_starts_a_ray_of_its_own(monkeypatch):
    asked, waited = [], []
    monkeypatch.setattr(cluster.ray, "init", lambda **options: asked.append(options))
    monkeypatch.setattr(cluster, "check_cluster", lambda config, wait_s, trains: waited.append(wait_s))
    for variable, setting in [("", ""), ("", "local"), ("local", ""), ("10.0.0.2:6379", "local")]:
        monkeypatch.setenv("RAY_ADDRESS", variable)
        cluster.connect(config(f"run.ray_address={setting}"))
    assert [options["address"] for options in asked] == ["local"] * 4
    assert all(options["num_cpus"] == 8 for options in asked) and waited == [0, 0, 0, 0]


def test_a_run_joins_the_cluster_that_is_configured_or_that_it_is_in(monkeypatch):
    asked, waited = [], []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: asked.append(options))
    monkeypatch.setattr(cluster, "check_cluster", lambda config, wait_s, trains: waited.append(wait_s))
    cluster.connect(config("run.ray_address=10.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    cluster.connect(config())
    assert [options["address"] for options in asked] == ["10.0.0.1:6379", "10.0.0.2:6379"]
    assert not any("num_cpus" in options for options in asked) and waited == [600, 600]


def test_rays_head_forgets_old_calls_of_actors(monkeypatch):
    class Echo:
        def call(self) -> None: ...

    for name in ("RAY_ADDRESS", "RAY_task_events_max_num_task_in_gcs"):
        monkeypatch.setenv(name, "")  # what is set below is undone afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(cluster, "CALLS_KEPT", 100)
    cluster.connect(config())
    try:
        echo = ray.remote(Echo).options(num_cpus=0).remote()
        ray.get([echo.call.remote() for _ in range(300)])
        deadline, names = time.monotonic() + 60, []
        while names.count("submit_task") < 300 or "call" not in names:
            assert time.monotonic() < deadline
            time.sleep(0.5)
            names = [event["name"] for event in ray.timeline()]
        time.sleep(3)  # the driver and the actor report once a second, each for itself
        events = ray.timeline()
        assert len({event["args"]["task_id"] for event in events if "task_id" in event["args"]}) <= 100
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def autoscaled() -> Iterator[Callable[[], dict[str, int]]]:
    """A Ray whose head believes in an autoscaler. Tells what that is asked to have room for: how many of each bundle with the
    labels of its node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_enable_autoscaler_v2", "1")
        patch.setattr("ray.autoscaler.v2.utils.cached_is_autoscaler_v2", None)
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="ERROR")
        gcs = GcsClient(address=ray.get_runtime_context().gcs_address)

        def asked() -> dict[str, int]:
            requests = [
                each for found in get_cluster_resource_state(gcs).cluster_resource_constraints for each in found.resource_requests
            ]
            return {named(each.request): each.count for each in requests}

        yield asked
        ray.shutdown()


def named(request: Any) -> str:
    labels = [rule for selector in request.label_selectors for rule in selector.label_constraints]
    return " ".join(
        [f"{amount:g} {name}" for name, amount in request.resources_bundle.items()]
        + [f"{rule.label_key}={','.join(rule.label_values)}" for rule in labels]
    )


@pytest.mark.parametrize("end", ["room", "too late", "stopped"])
def test_while_a_job_waits_for_nodes_an_autoscaler_is_asked_for_its_actors_and_for_nothing_afterwards(
    autoscaled, monkeypatch, end
):
    clock = SimpleNamespace(
        now=0.0, monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)
    )
    looks: list[dict[str, int]] = []

    def nodes() -> list[dict]:
        looks.append(autoscaled())
        if len(looks) == 2:  # another job waits too
            request_resources(bundles=[{"CPU": 64}])
        if len(looks) == 4 and end == "stopped":
            raise KeyboardInterrupt
        cpus = 99.0 if len(looks) == 4 and end == "room" else 2.0
        return [{"NodeManagerAddress": "a", "Resources": {"CPU": cpus}, "Labels": {"srl-role": "cpu"}, "Alive": True}]

    monkeypatch.setattr(cluster.ray, "nodes", nodes)
    monkeypatch.setattr(cluster, "time", clock)
    ended = {
        "room": nullcontext(),
        "too late": pytest.raises(ConfigError, match="nodes_wait_s=3"),
        "stopped": pytest.raises(KeyboardInterrupt),
    }
    with ended[end]:
        cluster.check_cluster(config("reward.workers=24", "reward.nodes.srl-role=cpu"), 3)
    ours = {"1 CPU": 3, "0.25 CPU srl-role=cpu": 24}  # rollout, learner and pipelines; graders
    assert looks == [{}, ours, ours, ours] and autoscaled() == {}


def test_a_label_that_no_node_can_have_is_refused_at_once(autoscaled):
    with pytest.raises(ConfigError, match=r"reward\.nodes: Invalid label selector .*`x y`"):
        cluster.check_cluster(config("reward.nodes.srl-role=x y"), 600)


def test_a_job_that_starts_before_its_nodes_have_joined_waits_for_them(monkeypatch, capsys):
    def node(name: str, cpus: float) -> dict:
        return {"NodeManagerAddress": name, "Resources": {"CPU": cpus}, "Labels": {}, "Alive": True}

    tables = iter([[node("head", 0.0)], [node("head", 0.0)], [node("head", 0.0), node("worker", 8.0)]])
    monkeypatch.setattr(cluster.ray, "nodes", lambda: next(tables))
    monkeypatch.setattr(cluster, "NODES_LOOK_S", 0)
    monkeypatch.setattr(cluster, "request_resources", lambda *asked: None)
    cluster.check_cluster(config(), 60)
    assert next(tables, None) is None, "it began before the last node had joined"
    said = capsys.readouterr().out
    assert said.count("waiting for nodes, 60 s at most: ") == 1 and "head 0 CPUs 0 GPUs" in said


def test_nodes_that_do_not_come_end_the_job_with_what_is_there(monkeypatch):
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [])
    monkeypatch.setattr(cluster, "NODES_LOOK_S", 0)
    monkeypatch.setattr(cluster, "request_resources", lambda *asked: None)
    with pytest.raises(ConfigError, match=r"learner.workers=1 asked, 0 of them fit.*waited run.nodes_wait_s=0.01 for more"):
        cluster.check_cluster(config(), 0.01)
