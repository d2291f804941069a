"""The pool with real engines: streaming, weights that arrive while it works, workers that die or hang."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import ray

from srl.config import Config, load_config
from srl.driver.session import connect
from srl.protocols.chat import Chat, model_folder
from srl.rollout.pool import PoolFull, RolloutPool
from srl.tasks.problems import chain_problems
from srl.trajectory import StopReason, Trajectory
from srl.weights.bundle import Bundle, folder_tensors, put_bundle

SETTINGS = [
    "rollout.workers=2", "rollout.threads=1", "rollout.cpus=0.5", "rollout.max_sequences=32", "rollout.retries=2",
    "rollout.kv_cache_gib=0.1", "rollout.hang_s=8", "rollout.weight_update=continue",
]  # fmt: skip


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, SETTINGS)


@pytest.fixture(scope="module")
def pool(config: Config) -> Iterator[RolloutPool]:
    connect(config)
    pool = RolloutPool(config)
    yield pool
    pool.close()
    ray.shutdown()


@pytest.fixture(scope="module")
def base_chat(config: Config) -> Chat:
    return Chat(model_folder("embedded"), config.prompts)


def groups(chat: Chat, name: str, count: int, members: int = 1) -> list[list[Trajectory]]:
    problems = chain_problems("test", count, 7, 3, 4)
    return [
        [
            Trajectory(f"{name}/{p.prompt_id}/{n}", p.prompt_id, p.question, p.gold, chat.opening(p.question), seed=1)
            for n in range(members)
        ]
        for p in problems
    ]


def new_weights(pool: RolloutPool) -> Bundle:
    from pathlib import Path

    return put_bundle(pool.version + 1, folder_tensors(Path(model_folder("embedded"))), 64)


def versions(trajectories: list[Trajectory]) -> set[int]:
    return {turn.weight_version for trajectory in trajectories for turn in trajectory.turns if turn.sampled}


def processes() -> list[psutil.Process]:
    """Of this test's rollout workers: other runs on this machine have some too."""
    return [p for p in psutil.Process().children(recursive=True) if any("RolloutWorker" in part for part in cmdline(p))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_submitted_groups_come_back_whole_and_once_and_never_more_are_held_than_allowed(pool, base_chat):
    asked = groups(base_chat, "submit", 40, 4)
    with pytest.raises(PoolFull, match="rollout.max_held=256"):
        pool.submit("prompted", groups(base_chat, "many", 65, 4), 1.0)
    pool.submit("prompted", asked, 1.0)
    assert pool.room() == 256 - 160
    with pytest.raises(ValueError, match="two trajectories have the id"):
        pool.submit("prompted", asked[:1], 1.0)
    found = []
    while finished := pool.completed(60):
        found += finished
    assert sorted(t.id for group in found for t in group) == sorted(t.id for group in asked for t in group)
    assert all(len({t.prompt_id for t in group}) == 1 and len(group) == 4 for group in found)
    assert all(t.stop_reason is not None for group in found for t in group)
    assert pool.room() == 256


def test_a_stream_draws_on_its_source_only_as_it_has_room(pool, base_chat):
    drawn = 0

    def source() -> Iterator[list[Trajectory]]:
        nonlocal drawn
        for group in groups(base_chat, "stream", 60, 8):
            drawn += 1
            yield group

    taken, most = 0, 0
    for _ in pool.stream("attempt", source(), 1.0):
        taken += 1
        most = max(most, drawn - taken)
    assert (taken, drawn) == (60, 60)
    assert most <= 256 // 8


def test_sampling_is_the_same_whatever_the_number_of_workers_and_the_order(pool, base_chat):
    def tokens(given: list[list[Trajectory]]) -> dict[str, list[int]]:
        return {t.id: t.token_ids() for (t,) in pool.stream("prompted", given, 1.0)}

    asked = groups(base_chat, "seeds", 48)
    by_both = tokens(asked)
    shuffled = groups(base_chat, "seeds", 48)
    random.Random(0).shuffle(shuffled)
    alone = pool.workers[0].generate.remote("prompted", [t for (t,) in shuffled], 1.0, pool.version)
    assert {t.id: t.token_ids() for t in ray.get(alone, timeout=120)} == by_both


def test_weights_may_arrive_while_trajectories_run_and_every_turn_says_which_it_began_with(pool, base_chat):
    """The weights are the same, so the tokens must be those of an undisturbed run."""
    asked = groups(base_chat, "in flight", 48, 4)
    pool.submit("prompted", asked, 1.0)
    before = pool.version
    found = list(pool.completed(60))
    for _ in range(2):
        pool.load_weights(new_weights(pool))
        found += pool.completed(1)
    while finished := pool.completed(60):
        found += finished
    disturbed = {t.id: t for group in found for t in group}
    assert len(disturbed) == 192 and before + 2 in versions(list(disturbed.values())) and pool.version == before + 2
    turns = [[turn.weight_version for turn in t.turns if turn.sampled] for t in disturbed.values()]
    assert all(list(sorted(found)) == found for found in turns)
    again = {t.id: t for group in pool.stream("prompted", asked, 1.0) for t in group}
    same = sum(again[name].token_ids() == t.token_ids() for name, t in disturbed.items())
    assert same >= 190, same


def test_kill_9_at_ten_random_moments_loses_nothing_and_repeats_nothing(pool, base_chat):
    pool.load_weights(new_weights(pool))
    rng, stop, killed = random.Random(3), threading.Event(), []

    def kill_now_and_then() -> None:
        while len(killed) < 10 and not stop.wait(rng.uniform(0.1, 0.6)):
            if victims := processes():
                victim = rng.choice(victims)
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)

    pool.config.rollout.retries = pool.backlog.retries = 10
    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    found = []
    try:
        for turn in range(20):
            found += pool.generate("prompted", [t for (t,) in groups(base_chat, f"kill {turn}", 10)], 1.0)
            if len(killed) < 10:
                time.sleep(0.2)
    finally:
        stop.set()
        killer.join()
        pool.config.rollout.retries = pool.backlog.retries = 2
    print(len(killed), pool.metrics())
    assert len({t.id for t in found}) == len(found) == 200
    assert versions(found) == {pool.version}
    assert not any(t.stop_reason is StopReason.FAILED for t in found)
    assert pool.metrics()["deaths"] > 0


def test_a_frozen_worker_is_replaced_and_its_work_done_by_others(pool, base_chat):
    pool.submit("prompted", groups(base_chat, "frozen", 100), 1.0)
    victim = processes()[0]
    os.kill(victim.pid, signal.SIGSTOP)
    found = []
    while finished := pool.completed(120):
        found += finished
    assert len(found) == 100 and versions([t for group in found for t in group]) == {pool.version}
    assert pool.metrics()["hangs"] >= 1
