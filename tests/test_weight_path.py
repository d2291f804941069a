"""Learner to rollout and back with real engines: the two must agree on every token's log-probability."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from statistics import mean

import psutil
import pytest

from srl.config import Config, load_config
from srl.driver.cluster import connect
from srl.driver.session import Session
from srl.learner.batch import Example, policy_example
from srl.learner.group import LearnerGroup
from srl.learner.losses import sft_loss
from srl.observe.run_directory import RunDirectory
from srl.tasks.problems import chain_problems
from srl.trajectory import Trajectory


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    directory = tmp_path_factory.mktemp("runs")
    config = load_config(None, [f"run.directory={directory}", "rollout.threads=1", "learner.threads=1"])
    connect(config)
    session = Session(config, RunDirectory(config))
    yield session
    session.close()


@pytest.fixture(scope="module")
def learners(session: Session) -> LearnerGroup:
    return LearnerGroup(session.config, session.base, None, 0.0, 1.0)


def attempts(session: Session, count: int = 24) -> list[Trajectory]:
    problems = chain_problems("test", count, 7, 3, 4)
    return [session.new_trajectory(f"t/{problem.prompt_id}", problem) for problem in problems]


def gaps(trajectories: list[Trajectory], learners: LearnerGroup) -> list[float]:
    """|log-probability when it was sampled - the learner's| of every sampled token."""
    scored = learners.logprobs([policy_example(trajectory, 0.0) for trajectory in trajectories])
    return [
        abs(sampled - trained)
        for trajectory in trajectories
        for sampled, trained in zip((x for turn in trajectory.turns for x in turn.logprobs), scored[trajectory.id], strict=True)
    ]


def agree(trajectories: list[Trajectory], learners: LearnerGroup) -> bool:
    """To single precision, but for a token where a head that copies is torn between two places: one was off by 6e-4, and in
    double precision lay halfway."""
    found = gaps(trajectories, learners)
    return mean(found) < 1e-5 and max(found) < 1e-2


def test_learner_and_engine_agree_before_and_after_a_sync(session: Session, learners: LearnerGroup):
    before = session.pool().generate("prompted", attempts(session), 1.0)
    assert agree(before, learners)
    learners.train([policy_example(trajectory, 0.0) for trajectory in before], sft_loss, 1e-3)
    assert mean(gaps(before, learners)) > 1e-3, "the update changed nothing"
    for version in (1, 2):
        session.pool().load_weights(learners.publish(version))
        after = session.pool().generate("prompted", attempts(session), 1.0)
        assert agree(after, learners)
        assert {turn.weight_version for t in after for turn in t.turns if turn.sampled} == {version}


@pytest.mark.long
def test_in_bfloat16_learner_and_engine_agree_to_a_hundredth_on_average_before_and_after_a_sync(session: Session):
    settings = ["model.dtype=bfloat16", "rollout.threads=1", "learner.threads=1", "rollout.cpus=0.5", "learner.cpus=0.5"]
    config = load_config(None, [f"run.directory={session.config.run.directory}", *settings])
    own = Session(config, session.run)
    learners = LearnerGroup(config, own.base, None, 0.0, 1.0)
    before = own.pool().generate("prompted", attempts(own), 1.0)
    assert mean(gaps(before, learners)) < 0.01
    learners.train([policy_example(trajectory, 0.0) for trajectory in before], sft_loss, 1e-3)
    assert mean(gaps(before, learners)) > 0.02, "the update changed nothing"
    for version in (1, 2):
        own.pool().load_weights(learners.publish(version))
        after = own.pool().generate("prompted", attempts(own), 1.0)
        assert mean(gaps(after, learners)) < 0.01
        assert {turn.weight_version for t in after for turn in t.turns if turn.sampled} == {version}
    own.stop_engines()
    learners.close()


@pytest.mark.long
def test_in_bfloat16_gradients_of_many_micro_batches_add_up(session: Session):
    # A bfloat16 sum of equal numbers stops growing after 256 of them. The mean over equal examples is the gradient of one.
    config = load_config(None, ["model.dtype=bfloat16", "learner.threads=1", "learner.cpus=0.5", "learner.micro_batch_tokens=8"])
    learners = LearnerGroup(config, session.base, None, 0.0, 1e9)
    same = [Example(str(n), [5, 9, 17, 9, 23, 9, 5, 41], [0.0] + [1.0] * 7) for n in range(600)]
    norms = [learners.train(examples, sft_loss, 0.0)["gradient_norm"] for examples in (same[:1], same)]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    learners.close()


def test_the_same_seeds_give_the_same_tokens_whatever_else_is_in_the_batch_and_in_whatever_order(session: Session):
    together = session.pool().generate("attempt", attempts(session), 1.0)
    alone = session.pool().generate("attempt", attempts(session)[5:6], 1.0)
    assert alone[0].token_ids() == together[5].token_ids()
    turned = session.pool().stream("attempt", [[trajectory] for trajectory in reversed(attempts(session))], 1.0)
    by_id = {trajectory.id: trajectory.token_ids() for (trajectory,) in turned}
    assert by_id == {trajectory.id: trajectory.token_ids() for trajectory in together}


def engine_process() -> psutil.Process:
    """The newest of this test's own: other runs on the machine have some too."""
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if any("RolloutWorker" in part for part in child.cmdline())]
    return max(workers, key=lambda process: process.create_time())


def test_a_worker_killed_while_it_generates_costs_no_trajectory_and_comes_back_with_current_weights(session: Session):
    version = session.pool().version
    assert version > 0, "the test above has synced weights"
    victim = engine_process()
    killer = threading.Timer(0.3, lambda: os.kill(victim.pid, signal.SIGKILL))
    killer.start()
    asked = [trajectory for trajectory in attempts(session, 240)]
    done = session.pool().generate("prompted", asked, 1.0)
    assert not psutil.pid_exists(victim.pid) or victim.status() == psutil.STATUS_ZOMBIE
    assert [t.id for t in done] == [t.id for t in asked]
    assert {turn.weight_version for t in done for turn in t.turns if turn.sampled} == {version}


def test_a_wait_for_an_engine_that_cannot_start_names_what_it_waited_for(session: Session):
    from srl.config import ConfigError
    from srl.rollout.pool import RolloutPool

    config = Config.model_validate({**session.config.model_dump(), "rollout": {"cpus": 50, "start_timeout_s": 2}})
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"rollout.start_timeout_s=2.*50 CPUs"):
        RolloutPool(config)
    assert time.monotonic() - started < 20
