"""Real vLLM: the tokens of a trajectory depend on nothing but its id, its seed and the weights, whatever becomes of workers."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from test_rollout_faults import groups, versions, workers

from srl.config import Config, load_config
from srl.driver.cluster import connect
from srl.protocols.chat import Chat, model_folder
from srl.rollout.pool import RolloutPool
from srl.tasks.problems import chain_problems
from srl.trajectory import Trajectory
from srl.weights.bucket import folder_tensors
from srl.weights.bundle import put_bundle

pytestmark = pytest.mark.long

Tokens = dict[str, list[int]]


def new_pool(config: Config, workers: int) -> RolloutPool:
    """With other weights than those that its workers start with: version 1."""
    pool = RolloutPool(config.model_copy(update={"rollout": config.rollout.model_copy(update={"workers": workers})}))
    changed = ((name, tensor + 0.001) for name, tensor in folder_tensors(Path(model_folder("embedded"))))
    pool.load_weights(put_bundle(1, changed, 8))
    return pool


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    small = ["cpus=0.5", "threads=1", "kv_cache_gib=0.1", "max_sequences=16", "retries=20"]
    config = load_config(None, [f"rollout.{setting}" for setting in small])
    connect(config)
    yield config
    ray.shutdown()


@pytest.fixture(scope="module")
def asked(config: Config) -> list[list[Trajectory]]:
    """200 groups of one, sorted by nothing."""
    chat = Chat(model_folder("embedded"), config.prompts)
    problems = chain_problems("test", 200, 7, 3, 4)
    return groups([(problem.prompt_id, chat.opening(problem.question)) for problem in problems], "kills", 200)


@pytest.fixture(scope="module")
def from_one_worker(config: Config, asked: list[list[Trajectory]]) -> Tokens:
    pool = new_pool(config, 1)
    found = list(pool.stream("prompted", asked, 1.0))
    pool.close()
    assert versions(found) == {1}
    return tokens(found)


@pytest.fixture(scope="module")
def pool(config: Config, from_one_worker: Tokens) -> Iterator[RolloutPool]:
    pool = new_pool(config, 2)
    yield pool
    pool.close()


def tokens(found: list[list[Trajectory]]) -> Tokens:
    return {trajectory.id: trajectory.token_ids() for (trajectory,) in found}


def test_two_workers_sample_what_one_does_in_whatever_order(pool, asked, from_one_worker):
    assert tokens(list(pool.stream("prompted", reversed(asked), 1.0))) == from_one_worker


def test_kill_9_at_ten_random_moments_changes_no_token_and_no_weight_version(pool, asked, from_one_worker):
    rng, found, killed = random.Random(4), [], 0
    moments = sorted(rng.sample(range(180), 10))
    for group in pool.stream("prompted", asked, 1.0):
        found.append(group)
        # Where none is up just now, the kill waits for the next result.
        if killed < 10 and len(found) > moments[killed] and (victims := workers()):
            os.kill(rng.choice(victims), signal.SIGKILL)
            killed += 1
    assert killed == 10 and len(found) == 200
    assert tokens(found) == from_one_worker
    assert versions(found) == {1} and pool.metrics()["deaths"] >= 10 and pool.metrics()["failed"] == 0
