"""What Ray's memory monitor kills: a Ray of its own, whose monitor kills every actor that begins to work."""

import os
import re
import sys
import time
from collections.abc import Iterator

import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError

from srl.config import load_config
from srl.learner import group
from srl.learner.group import LearnerGroup, LearnerLost
from srl.observe.health import Beat
from srl.observe.watchdog import cause_of
from srl.weights.stream import failed

THIS_IS_TOO_MUCH = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}


class Rank:
    def ping(self) -> int:
        time.sleep(0.1)
        return os.getpid()


@pytest.fixture(scope="module")
def dead() -> Iterator[ActorHandle]:
    """An actor that the monitor has killed for good, and so are all that follow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        for name, value in THIS_IS_TOO_MUCH.items():
            patch.setenv(name, value)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
        )
        actor = ray.remote(Rank).options(max_restarts=0).remote()
        error_of(actor)
        yield actor
        ray.shutdown()


def error_of(actor: ActorHandle) -> OutOfMemoryError:
    for _ in range(600):  # it may answer until the monitor looks
        try:
            ray.get(actor.ping.remote(), timeout=120)
        except OutOfMemoryError as error:
            return error
    raise AssertionError("the monitor killed nobody")


def test_a_learner_that_the_memory_monitor_kills_is_lost_and_not_the_run(monkeypatch: pytest.MonkeyPatch, dead: ActorHandle):
    monkeypatch.setattr(LearnerGroup, "_start", lambda self: setattr(self, "ranks", [dead]))
    monkeypatch.setattr(group, "learner_room", lambda config: None)
    learners = LearnerGroup(load_config(None, []), "model", None, 0.0, 1.0)
    with pytest.raises(LearnerLost, match=r"died during learners to ping: 1 worker\(s\) were killed due to .* low on memory"):
        learners._all("ping")
    assert learners._some_rank_is_dead()


def test_a_worker_that_the_memory_monitor_kills_does_not_get_the_weights(dead: ActorHandle):
    lost = failed({dead.ping.remote(): "rollout 0"}, 60, "a part of the weights to load")
    assert lost.keys() == {"rollout 0"} and "low on memory" in lost["rollout 0"]


def test_a_death_by_the_memory_monitor_is_explained_by_the_heartbeat_of_whom_it_killed(dead: ActorHandle):
    error = RuntimeError("learner.retries=0: a learner died")
    error.__cause__ = error_of(dead)
    pid, node = re.search(r"pid=(\d+)", str(error.__cause__))[1], ray.util.get_node_ip_address()
    used, limit = 5 * 2**30, 100 * 2**30  # as they were before it began to grow
    beats = [
        Beat(role, 0, role, node, int(pid) + other, "train>backward", used, used, limit, heard=100)
        for other, role in enumerate(("learner", "rollout"))
    ]
    cause = cause_of(error, beats, 103)
    assert cause.startswith(f"learner 0 on {node} (pid {pid}) died in train>backward; 3 s before, it had 5.0 GiB resident")
    assert "out of memory; settings that change it: learner.micro_batch_tokens" in cause
    assert cause_of(error, beats[1:], 103) is None
