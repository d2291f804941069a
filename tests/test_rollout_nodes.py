"""A node that leaves a cluster of three, with an engine of ten lines in place of vLLM."""

import tempfile
import time
from collections.abc import Iterator

import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster
from test_rollout_faults import SlowEngine, all_completed, groups, new_weights, versions

from srl.config import load_config
from srl.driver.cluster import connect
from srl.protocols.chat import Chat, model_folder
from srl.rollout.fleet import State, WeightsLost
from srl.rollout.pool import RolloutPool
from srl.tasks.problems import chain_problems
from srl.weights.bundle import Bundle

pytestmark = pytest.mark.long

NODE = {"num_cpus": 1, "labels": {"srl-role": "rollout"}, "object_store_memory": 80 * 2**20}
WAIT_S = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head for the driver, in a folder of its own: who starts Ray without an address looks for one in the default folder."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        fast = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "_system_config": fast}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> dict[str, Node]:
    """Two for a rollout worker each, by the id that Ray gives a node."""
    return {node.node_id: node for node in (cluster.add_node(**NODE), cluster.add_node(**NODE))}


@pytest.fixture(scope="module")
def pool(cluster: Cluster, nodes: dict[str, Node]) -> Iterator[RolloutPool]:
    settings = ["rollout.workers=2", "rollout.cpus=1", "rollout.nodes.srl-role=rollout", "rollout.max_sequences=8"]
    actors = ["reward.cpus=0", "learner.cpus=0"]
    config = load_config(None, [*settings, *actors, f"run.ray_address={cluster.address}"])
    connect(config)
    pool = RolloutPool(config, make_engine=lambda config, chat: SlowEngine())
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def openings() -> list[tuple[str, list[int]]]:
    chat = Chat(model_folder("embedded"), load_config(None, []).prompts)
    return [(problem.prompt_id, chat.opening(problem.question)) for problem in chain_problems("test", 100, 7, 3, 4)]


@ray.remote
class Owner:
    """Makes weights, as the first learner does."""

    def weights(self, version: int) -> Bundle:
        return new_weights(version)


def states(pool: RolloutPool) -> list[State]:
    return [slot.state for slot in pool.fleet.slots]


def node_of(pool: RolloutPool, index: int) -> str:
    where = pool.fleet.slots[index].worker.__ray_call__.remote(lambda worker: ray.get_runtime_context().get_node_id())
    return ray.get(where, timeout=WAIT_S)


def test_what_a_lost_node_had_goes_to_the_other_and_its_worker_starts_again_on_the_next_node(cluster, nodes, pool, openings):
    undisturbed = {t.id: t.token_ids() for (t,) in pool.stream("intrinsic", groups(openings, "node", 100), 1.0)}
    pool.load_weights(new_weights(1))
    pool.submit("intrinsic", groups(openings, "node", 40), 1.0)
    found = pool.completed(WAIT_S)
    assert len(found) < 40
    lost = pool.fleet.slots[0]
    assert lost.orders
    cluster.remove_node(nodes[node_of(pool, 0)], allow_graceful=False)  # every process of it by SIGKILL
    found += all_completed(pool)
    assert sorted(t.id for (t,) in found) == sorted(t.id for (t,) in groups(openings, "node", 40))
    assert pool.metrics()["deaths"] >= 1 and states(pool) == [State.STARTING, State.UP]
    pool.config.rollout.start_timeout_s = 0.02  # of listening, which is all that counts: some milliseconds of each turn here
    while pool.metrics()["hangs"] < 12:  # more often than a worker may die: without a node it waits on
        pool.completed(0)
        time.sleep(0.2)
    pool.config.rollout.start_timeout_s = 300
    back = cluster.add_node(**NODE)
    all_up(pool)
    assert node_of(pool, 0) == back.node_id
    rest = groups(openings, "node", 100)[40:]
    found += list(pool.stream("intrinsic", rest, 1.0))
    assert lost.counts, "the worker that came back had no part in it"
    assert {t.id: t.token_ids() for (t,) in found} == undisturbed and len(found) == 100
    assert versions(found) == {1} and pool.metrics()["failed"] == 0


def test_a_worker_that_starts_when_the_weights_are_gone_with_their_node_says_so_and_takes_the_next_ones(cluster, pool, openings):
    elsewhere = cluster.add_node(num_cpus=1, labels={"srl-role": "learner"}, object_store_memory=80 * 2**20)
    owner = Owner.options(num_cpus=1, label_selector={"srl-role": "learner"}).remote()
    pool.load_weights(ray.get(owner.weights.remote(2), timeout=WAIT_S))
    pool.submit("intrinsic", groups(openings, "before", 40), 1.0)
    worker_node = next(node for node in cluster.list_all_nodes() if node.node_id == node_of(pool, 0))
    cluster.remove_node(elsewhere, allow_graceful=False)
    cluster.remove_node(worker_node, allow_graceful=False)
    cluster.add_node(**NODE)
    with pytest.raises(WeightsLost, match="weights 2 are gone"):
        all_completed(pool)
        all_up(pool)
    pool.load_weights(new_weights(3))
    all_completed(pool)
    all_up(pool)
    found = list(pool.stream("intrinsic", groups(openings, "after", 20), 1.0))
    assert len(found) == 20 and versions(found) == {3} and pool.metrics()["failed"] == 0


def all_up(pool: RolloutPool) -> None:
    """Until both workers are up."""
    deadline = time.monotonic() + WAIT_S
    while states(pool) != [State.UP, State.UP]:
        assert time.monotonic() < deadline, states(pool)
        assert pool.completed(0) == []
        time.sleep(0.2)
