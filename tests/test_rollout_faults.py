"""Workers that die, freeze, hang or load weights slowly, with an engine of ten lines in place of vLLM."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray import cloudpickle

from srl.config import load_config
from srl.driver.cluster import connect
from srl.learner.group import LearnerLost
from srl.protocols.chat import Chat, model_folder
from srl.rollout import fleet
from srl.rollout.engine import Completion
from srl.rollout.fleet import Clock, Fleet, Slot, State
from srl.rollout.pool import PoolFull, RolloutPool
from srl.tasks.problems import chain_problems
from srl.trajectory import StopReason, Trajectory
from srl.weights.bundle import Bundle, put_bundle
from srl.weights.stream import Stream

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class SlowEngine:
    """Every step takes 20 ms and ends the oldest request; the tokens follow from the seed. Some prompts it does not survive."""

    version, asleep = 0, False

    def __init__(self):
        self.running = {}

    def submit(self, request_id, token_ids, sampling):
        if request_id.startswith("deadly"):
            os._exit(1)
        if request_id.startswith("endless"):
            time.sleep(1e6)
        self.running[request_id] = sampling.seed % 50 + 5

    def step(self):
        time.sleep(0.02)
        request_id = next(iter(self.running))
        return [Completion(request_id, [self.running.pop(request_id)], [-1.0], False, self.version)]

    def abort(self, request_ids):
        self.running.clear()

    def load_weights(self, buckets, version):
        assert len(list(buckets)) == 1
        self.version, self.asleep = version, False

    def sleep(self):
        self.asleep = True


@pytest.fixture(scope="module")
def pool() -> Iterator[RolloutPool]:
    settings = ["rollout.workers=3", "rollout.cpus=0.5", "rollout.max_sequences=8", "rollout.retries=1", "rollout.hang_s=5"]
    config = load_config(None, [*settings, "rollout.colocate=true", "learner.workers=3"])
    connect(config)
    pool = RolloutPool(config, make_engine=lambda config, chat: SlowEngine())
    yield pool
    pool.close()
    ray.shutdown()


@pytest.fixture(scope="module")
def openings() -> list[tuple[str, list[int]]]:
    chat = Chat(model_folder("embedded"), load_config(None, []).prompts)
    return [(problem.prompt_id, chat.opening(problem.question)) for problem in chain_problems("test", 200, 7, 3, 4)]


def groups(openings, name: str, count: int, members: int = 1) -> list[list[Trajectory]]:
    return [
        [Trajectory(f"{name}/{prompt_id}/{n}", prompt_id, "", "", opening, seed=1) for n in range(members)]
        for prompt_id, opening in openings[:count]
    ]


def new_weights(version: int) -> Bundle:
    import torch

    return put_bundle(version, [("weight", torch.zeros(2))], 64)


def versions(found: list[list[Trajectory]]) -> set[int]:
    return {turn.weight_version for group in found for t in group for turn in t.turns if turn.sampled}


def workers(doing: str = "") -> list[int]:
    """Process ids of this test's rollout workers that are up and in that call: other runs on the machine have some too."""

    def title(process: psutil.Process) -> str:
        try:
            return " ".join(process.cmdline())
        except psutil.Error:
            return ""

    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if f"RolloutWorker{doing}" in (name := title(child)) and "__init__" not in name]


def wait_until_all_are_up(pool: RolloutPool) -> None:
    while any(slot.state is not State.UP for slot in pool.fleet.slots):
        assert pool.completed(0) == []
        time.sleep(0.1)


def all_completed(pool: RolloutPool) -> list[list[Trajectory]]:
    found = []
    while finished := pool.completed(120):
        found += finished
    return found


def test_submitted_groups_come_back_whole_and_once_and_never_more_are_held_than_allowed(pool, openings):
    asked = groups(openings, "submit", 20, 4)  # 80 of 4 x 3 x 8 = 96
    with pytest.raises(PoolFull, match="100 trajectories, room for 96 of rollout.max_held=96"):
        pool.submit("prompted", groups(openings, "many", 25, 4), 1.0)
    pool.submit("prompted", asked, 1.0)
    assert pool.room() == 16
    with pytest.raises(ValueError, match="two trajectories have the id"):
        pool.submit("prompted", asked[:1], 1.0)
    found = all_completed(pool)
    assert sorted(t.id for group in found for t in group) == sorted(t.id for group in asked for t in group)
    assert all(len({t.prompt_id for t in group}) == 1 and len(group) == 4 for group in found)
    assert all(t.stop_reason is not None for group in found for t in group)
    assert pool.room() == 96


def test_a_stream_draws_on_its_source_only_as_it_has_room(pool, openings):
    drawn = taken = most = 0

    def source() -> Iterator[list[Trajectory]]:
        nonlocal drawn
        for group in groups(openings, "stream", 40, 8):
            drawn += 1
            yield group

    for _ in pool.stream("attempt", source(), 1.0):
        most = max(most, drawn - taken)
        taken += 1
    assert (taken, drawn) == (40, 40) and most <= 96 // 8


def test_what_a_closed_stream_left_is_dropped_and_may_be_asked_for_again_at_once(pool, openings):
    for taken in (1, 5):
        stream = pool.stream("attempt", groups(openings, "closed", 30), 1.0)
        assert all(len(next(stream)) == 1 for _ in range(taken))
        stream.close()
        assert not pool.held.total() and not pool.ids
    found = list(pool.stream("attempt", groups(openings, "closed", 30), 1.0))
    assert sorted(t.id for (t,) in found) == sorted(t.id for (t,) in groups(openings, "closed", 30))
    pool.submit("attempt", groups(openings, "after", 80), 1.0)
    assert len(all_completed(pool)) == 80 and not pool.ids and not pool.left


def test_what_a_closed_stream_left_with_a_worker_that_dies_is_not_tried_again(pool, openings):
    retried = pool.metrics()["retried"]
    stream = pool.stream("attempt", groups(openings, "left", 60), 1.0)
    next(stream)
    stream.close()
    assert pool.left
    os.kill(ray.get(pool.fleet.slots[0].worker.__ray_call__.remote(lambda worker: os.getpid()), timeout=60), signal.SIGKILL)
    while pool.left:
        assert pool.completed(0) == []
        time.sleep(0.1)
    assert pool.metrics()["retried"] == retried
    assert len(list(pool.stream("attempt", groups(openings, "left", 60), 1.0))) == 60


@pytest.mark.parametrize(("update", "same"), [("finish", True), ("continue", False)])
def test_running_trajectories_end_under_the_old_weights_or_go_on_under_the_new_ones(pool, openings, update, same):
    pool.config.rollout.weight_update = update
    before = pool.version
    pool.submit("intrinsic", groups(openings, f"update {update}", 60), 1.0)
    time.sleep(0.2)
    pool.load_weights(new_weights(before + 1))
    found = [t for group in all_completed(pool) for t in group]
    by_trajectory = [[turn.weight_version for turn in t.turns if turn.sampled] for t in found]
    assert len(found) == 60 and versions([found]) == {before, before + 1}
    assert all(first <= second for first, second in by_trajectory)
    assert all(first == second for first, second in by_trajectory) is same


@pytest.mark.long
def test_kill_9_at_ten_random_moments_in_200_trajectories_loses_nothing_and_repeats_nothing(pool, openings):
    undisturbed = {t.id: t.token_ids() for (t,) in pool.stream("intrinsic", groups(openings, "kill", 200), 1.0)}
    pool.load_weights(new_weights(pool.version + 1))
    rng, found, killed = random.Random(3), [], 0
    moments = sorted(rng.sample(range(180), 10))
    pool.config.rollout.retries = pool.backlog.retries = 20
    for group in pool.stream("intrinsic", groups(openings, "kill", 200), 1.0):
        found.append(group)
        # Where none is up just now, the kill waits for the next result.
        if killed < 10 and len(found) > moments[killed] and (victims := workers()):
            os.kill(rng.choice(victims), signal.SIGKILL)
            killed += 1
    pool.config.rollout.retries = pool.backlog.retries = 1
    assert killed == 10
    assert {t.id: t.token_ids() for (t,) in found} == undisturbed and len(found) == 200
    assert versions(found) == {pool.version}


def test_a_prompt_that_kills_its_worker_fails_alone(pool, openings):
    deadly = [[Trajectory("deadly", "p", "", "", openings[0][1])]]
    found = {t.id: t for (t,) in pool.stream("attempt", groups(openings, "innocent", 40) + deadly, 1.0)}
    failed = [name for name, t in found.items() if t.stop_reason is StopReason.FAILED]
    assert failed == ["deadly"] and len(found) == 41
    assert found["deadly"].turns == [] and pool.metrics()["failed"] == 1


def test_work_that_was_finished_while_the_driver_was_away_is_taken_and_no_worker_is_called_late(pool, openings):
    before, pool.config.rollout.timeout_s = pool.metrics()["hangs"], 5.0
    pool.submit("attempt", groups(openings, "away", 30), 1.0)
    time.sleep(6)  # as in a long optimizer step; the workers need less than a second
    found = all_completed(pool)
    pool.config.rollout.timeout_s = 600.0
    assert len(found) == 30 and pool.metrics()["hangs"] == before


def test_the_clock_of_all_deadlines_stands_still_while_the_driver_is_elsewhere(monkeypatch):
    moments = iter([100.0, 103.0, 104.0, 900.0, 902.0, 905.0])
    monkeypatch.setattr("srl.rollout.fleet.time", SimpleNamespace(monotonic=lambda: next(moments)))
    clock = Clock()
    assert clock.now() == 0
    with clock.running():  # at 100
        assert clock.now() == 3  # at 103
    assert clock.now() == 4  # left at 104
    with clock.running():  # at 900
        assert clock.now() == 6
    assert clock.now() == 9  # left at 905


def test_a_worker_for_which_dead_learners_make_no_copy_of_the_weights_is_asked_again_whether_it_is_up():
    def whole(version: int) -> Bundle:
        raise LearnerLost("a learner died during learners to publish")

    lost = Fleet.__new__(Fleet)
    lost.weights = Stream(2, SimpleNamespace(whole=whole), broadcast=True)
    slot = Slot(0, None, Clock(), State.LOADING)  # it has come with older weights
    with pytest.raises(LearnerLost):
        lost._load(slot)
    assert slot.state is State.STARTING and not slot.calls


def test_a_worker_that_is_down_has_no_part_in_the_seconds_of_a_load():
    fleet_ = Fleet.__new__(Fleet)
    fleet_.config, fleet_.clock = load_config(None, []), Clock()
    fleet_.slots = [Slot(0, None, fleet_.clock, State.STARTING, load_seconds={"load": 9.0})]
    fleet_.load_weights(Bundle(2, [], 0))
    assert fleet_.slots[0].load_seconds == {}


def test_engines_that_restart_are_put_to_sleep_with_the_others_and_need_no_weights_for_it(pool, openings):
    def engine(name: str) -> list:
        found = [slot.worker.__ray_call__.remote(lambda worker: getattr(worker.thread.loop.engine, name)) for slot in slots]
        return ray.get(found, timeout=60)

    wait_until_all_are_up(pool)
    slots, version, limit = pool.fleet.slots, pool.version + 1, pool.config.rollout.start_timeout_s
    pool.load_weights(new_weights(version))
    os.kill(ray.get(slots[1].worker.__ray_call__.remote(lambda worker: os.getpid()), timeout=60), signal.SIGKILL)
    pool.config.rollout.start_timeout_s = 0.1
    with pytest.raises(TimeoutError, match="rollout.start_timeout_s=0.1: waited for engines to come up and be put to sleep: 1"):
        pool.sleep()
    pool.config.rollout.start_timeout_s = limit
    pool.sleep()
    assert [slot.state for slot in slots] == [State.ASLEEP] * 3 and engine("asleep") == [True] * 3
    assert engine("version") == [version, 0, version]
    pool.load_weights(new_weights(version + 1))
    assert engine("asleep") == [False] * 3
    assert versions(list(pool.stream("attempt", groups(openings, "slept", 20), 1.0))) == {version + 1}


def test_work_that_was_begun_is_finished_before_engines_sleep_and_the_rest_when_they_are_awake_again(pool, openings):
    version, asked = pool.version, groups(openings, "rest", 60)
    pool.submit("attempt", asked, 1.0)
    pool.sleep()
    assert [slot.state for slot in pool.fleet.slots] == [State.ASLEEP] * 3
    before = pool.completed(0)
    assert len(before) == 36 and versions(before) == {version}  # 3 workers hold 12 each
    pool.load_weights(new_weights(version + 1))
    after = all_completed(pool)
    assert versions(after) == {version + 1}
    assert sorted(t.id for (t,) in before + after) == sorted(t.id for (t,) in asked)


def test_an_engine_that_dies_asleep_is_started_again_with_the_next_weights_and_not_beside_learners_that_train(pool, openings):
    def process(worker) -> tuple[int, bool]:
        return os.getpid(), worker.started is not None

    version, slot = pool.version + 1, pool.fleet.slots[2]
    pool.sleep()
    victim, up = ray.get(slot.worker.__ray_call__.remote(process), timeout=60)
    assert up
    os.kill(victim, signal.SIGKILL)
    while True:
        try:
            again, up = ray.get(slot.worker.__ray_call__.remote(process), timeout=60)
            break
        except ray.exceptions.RayActorError:
            time.sleep(0.2)
    assert again != victim and not up
    pool.load_weights(new_weights(version))
    assert versions(list(pool.stream("attempt", groups(openings, "died asleep", 40), 1.0))) == {version}
    assert ray.get(slot.worker.__ray_call__.remote(process), timeout=60) == (again, True)


@pytest.mark.long
def test_a_worker_whose_engine_hangs_or_that_is_frozen_is_replaced(pool, openings, monkeypatch):
    def kill_late(worker, no_restart: bool) -> None:
        threading.Timer(2.0, kill, (worker,), {"no_restart": no_restart}).start()  # as on a busy machine

    kill, hangs = ray.kill, pool.metrics()["hangs"]
    monkeypatch.setattr(fleet.ray, "kill", kill_late)
    pool.submit("attempt", [[Trajectory("endless", "p", "", "", openings[0][1])]], 1.0)
    (((endless,),),) = [all_completed(pool)]
    pool.config.rollout.retries = pool.backlog.retries = 5
    wait_until_all_are_up(pool)
    # What still answers before it is killed is not taken for the next worker, and given up once more.
    assert endless.stop_reason is StopReason.FAILED and pool.metrics()["hangs"] == hangs + 2
    monkeypatch.undo()
    frozen = pool.fleet.slots[0]
    victim = ray.get(frozen.worker.__ray_call__.remote(lambda worker: os.getpid()), timeout=60)
    pool.submit("attempt", groups(openings, "frozen", 90), 1.0)
    assert frozen.orders
    os.kill(victim, signal.SIGSTOP)
    found = all_completed(pool)
    pool.config.rollout.retries = pool.backlog.retries = 1
    assert len(found) == 90 and versions(found) == {pool.version}
    assert not any(t.stop_reason is StopReason.FAILED for (t,) in found)
    assert pool.metrics()["hangs"] > hangs + 2
