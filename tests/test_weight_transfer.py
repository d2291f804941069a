"""Weights straight from real learners' memory into real engines, over gloo and over mapped files, with engines that sleep."""

import os
import signal
from collections.abc import Iterator
from statistics import mean

import pytest
from test_weight_path import agree, attempts, engine_process, gaps

from srl.config import load_config
from srl.driver.cluster import connect
from srl.driver.session import Session
from srl.learner.batch import policy_example
from srl.learner.group import LearnerGroup
from srl.learner.losses import sft_loss
from srl.observe.run_directory import RunDirectory
from srl.rollout.fleet import State
from srl.weights.stream import Stream

SMALL = ["rollout.threads=1", "learner.threads=1", "learner.bucket_mib=1"]  # 3 MiB of weights are several parts


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield f"run.directory={tmp_path_factory.mktemp('runs')}"
    import ray

    ray.shutdown()


def new_session(runs: str, *settings: str) -> Session:
    config = load_config(None, [runs, f"run.name={settings[0].rpartition('=')[2]}", *SMALL, *settings])
    connect(config)
    return Session(config, RunDirectory(config))


def sync(session: Session, learners: LearnerGroup, version: int) -> dict[str, float]:
    """Train a step, hand the weights over, compare what is sampled with what the learners say of it."""
    sampled = session.pool().generate("attempt", attempts(session, 8), 1.0)
    if session.config.rollout.colocate:
        session.pool().sleep()
    learners.train([policy_example(trajectory, 0.0) for trajectory in sampled], sft_loss, 1e-3)
    assert mean(gaps(sampled, learners)) > 1e-3, "the update changed nothing"
    stream = learners.publish(version)
    assert isinstance(stream, Stream)
    seconds = {**session.pool().load_weights(stream), **stream.seconds}
    assert set(seconds) == {"gather", "pack", "transfer", "load"} and stream.size > 2 * 2**20
    done = session.pool().generate("attempt", attempts(session, 8), 1.0)
    assert agree(done, learners)
    assert {turn.weight_version for t in done for turn in t.turns if turn.sampled} == {version}
    return seconds


def test_a_broadcast_from_sharded_learners_reaches_an_engine_and_one_that_restarts_catches_up(runs: str):
    session = new_session(runs, "learner.transfer=broadcast", "learner.workers=2", "learner.zero_stage=3", "learner.cpus=0.5")
    learners = LearnerGroup(session.config, session.base, None, 0.0, 1.0)
    session.pool()
    sync(session, learners, 1)
    joined = learners.linked
    sync(session, learners, 2)
    assert learners.linked == joined, "the group is made once"

    os.kill(engine_process().pid, signal.SIGKILL)
    done = session.pool().generate("attempt", attempts(session, 8), 1.0)
    assert agree(done, learners)
    assert {turn.weight_version for t in done for turn in t.turns if turn.sampled} == {2}, "from the object store"
    sync(session, learners, 3)
    assert learners.linked and learners.linked != joined, "and anew with who is there"
    session.stop_engines()
    learners.close()


def test_an_engine_beside_its_learner_sleeps_while_it_trains_and_wakes_with_the_weights_in_its_memory(runs: str):
    session = new_session(runs, "learner.transfer=ipc", "rollout.colocate=true", "rollout.cpus=1", "learner.cpus=1")
    learners = LearnerGroup(session.config, session.base, None, 0.0, 1.0, shared=session.room())
    for version in (1, 2):
        sync(session, learners, version)
    session.pool().sleep()
    assert [slot.state for slot in session.pool().fleet.slots] == [State.ASLEEP]
    session.pool().load_weights(learners.whole(3))  # also from the object store
    done = session.pool().generate("attempt", attempts(session, 8), 1.0)
    assert agree(done, learners)
    learners.close()
    session.stop_engines()
    assert session._room is None
