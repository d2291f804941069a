"""The loop on its thread, with an engine whose steps the test lets through one by one."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from srl.config import Config
from srl.protocols.chat import Chat
from srl.protocols.protocol import build_protocol
from srl.rollout.engine import Completion
from srl.rollout.loop import EngineFailure, Limits, TrajectoryLoop
from srl.rollout.thread import EngineHangs, Job, LoopThread
from srl.trajectory import Trajectory
from srl.weights.feed import Feed


class GatedEngine:
    """A step waits for a permit, then ends the oldest request; the call named in `errors` raises what it holds."""

    def __init__(self, tokens: list[int]):
        self.tokens, self.version, self.errors = tokens, 0, {}
        self.permits = threading.Semaphore(0)
        self.running: dict[str, int | None] = {}
        self.submitted: list[str] = []

    def fail(self, name):
        if name in self.errors:
            raise self.errors[name]

    def submit(self, request_id, token_ids, sampling):
        self.fail("submit")
        self.running[request_id] = None
        self.submitted.append(request_id)

    def step(self):
        self.running = {name: self.version if begun is None else begun for name, begun in self.running.items()}
        self.permits.acquire()
        self.fail("step")
        request_id = next(iter(self.running))
        return [Completion(request_id, self.tokens, [-1.0] * len(self.tokens), False, self.running.pop(request_id))]

    def load_weights(self, buckets, version):
        self.fail("load")
        self.parts, self.version, self.asleep = list(buckets), version, False
        return {"load": float(len(self.parts))}

    def sleep(self):
        self.asleep = True


def started(chat: Chat, max_active: int = 2, hang_s: float = 60.0) -> tuple[GatedEngine, LoopThread]:
    engine = GatedEngine([chat.tokenizer.get_vocab()["10"], chat.end_id])
    loop = TrajectoryLoop(engine, chat, Limits(512, max_active=max_active))
    return engine, LoopThread(lambda: loop, lambda name: build_protocol(name, Config(), chat), hang_s)


def job(chat: Chat, name: str, members: int = 1, protocol: str = "attempt") -> Job:
    group = [Trajectory(f"{name}/{n}", name, "Check", "10", chat.opening("Check")) for n in range(members)]
    return Job(name, protocol, group, 1.0)


def collected(thread: LoopThread, count: int) -> list[str]:
    found: list[Job] = []
    while len(found) < count:
        found += thread.collect(30)
    return [done.id for done in found]


def test_a_job_comes_back_whole_when_its_last_trajectory_has_ended(chat):
    engine, thread = started(chat)
    thread.add([job(chat, "long", 3), job(chat, "short")])
    for _ in range(3):
        engine.permits.release()
    assert [done.id for done in thread.collect(30)] == ["long"]
    assert thread.collect(0.05) == []
    engine.permits.release()
    assert [done.id for done in thread.collect(30)] == ["short"]
    assert engine.submitted == ["long/0#0", "long/1#0", "long/2#0", "short/0#0"]


def test_a_job_that_arrives_twice_runs_once(chat):
    engine, thread = started(chat)
    thread.add([job(chat, "first")])
    while not engine.submitted:
        time.sleep(0.01)
    thread.add([job(chat, "same"), job(chat, "same"), job(chat, "next")])  # all heard after the step that runs
    engine.permits.release(3)
    assert collected(thread, 3) == ["first", "same", "next"]
    assert engine.submitted == ["first/0#0", "same/0#0", "next/0#0"]


@pytest.mark.parametrize(("finish_first", "versions"), [(True, [[0, 0], [7, 7]]), (False, [[0, 7], [7, 7]])])
def test_what_runs_ends_under_the_old_weights_first_or_goes_on_under_the_new_ones(chat, finish_first, versions):
    """One trajectory of two turns runs, one waits for its place."""
    engine, thread = started(chat, max_active=1)
    jobs = [job(chat, name, protocol="intrinsic") for name in ("running", "waiting")]
    thread.add(jobs)
    while not engine.submitted:
        time.sleep(0.01)
    loader = threading.Thread(target=thread.load_weights, args=([], 7, finish_first))
    loader.start()
    while thread.inbox.empty():
        time.sleep(0.01)
    engine.permits.release(4)
    assert collected(thread, 2) == ["running", "waiting"]
    found = {done.id: done.trajectories[0] for done in jobs}
    loader.join(30)
    assert not loader.is_alive() and engine.version == 7
    assert [[turn.weight_version for turn in found[name].turns[::2]] for name in ("running", "waiting")] == versions


def test_an_engine_that_raises_ends_every_wait_with_its_error(chat):
    engine, thread = started(chat)
    engine.errors["step"] = ValueError("out of memory")
    thread.add([job(chat, "a")])
    engine.permits.release()
    for call in (lambda: thread.collect(30), lambda: thread.add([]), lambda: thread.load_weights([], 1, True)):
        with pytest.raises(EngineFailure, match="ValueError: out of memory"):
            call()


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError("engine core died"), EngineFailure, "OSError: engine core died"),
        (ValueError("not to be had"), ValueError, "^not to be had"),
    ],
)
def test_a_dead_engine_is_a_failure_of_the_engine_and_a_wrong_request_or_weight_is_none(chat, error, raised, said):
    engine, thread = started(chat)
    engine.errors["submit"] = error
    thread.add([job(chat, "a")])
    with pytest.raises(raised, match=said):
        thread.collect(30)
    engine, thread = started(chat)
    engine.errors["load"] = error
    with pytest.raises(raised, match=said):
        thread.load_weights([], 1, True)


def test_an_engine_that_hangs_is_told_from_one_that_has_nothing_to_do(chat):
    engine, thread = started(chat, hang_s=0.8)
    assert thread.collect(2.0) == []
    thread.add([job(chat, "a")])
    with pytest.raises(EngineHangs, match=r"rollout\.hang_s=0\.8"):
        thread.collect(30)
    engine.permits.release()
    while thread.loop.busy:
        time.sleep(0.01)
    assert [done.id for done in thread.collect(30)] == ["a"]


def test_a_start_and_a_load_that_take_longer_than_a_step_may_are_no_hang(chat):
    def make_loop():
        time.sleep(3.2)
        return TrajectoryLoop(engine, chat, Limits(512))

    engine, _ = started(chat)
    thread = LoopThread(make_loop, lambda name: build_protocol(name, Config(), chat), 3.0)
    thread.add([job(chat, "a"), job(chat, "b")])
    assert thread.collect(0.6) == []  # the first step runs

    load = engine.load_weights
    engine.load_weights = lambda buckets, version: (time.sleep(3.2), load(buckets, version))[1]
    loader = threading.Thread(target=thread.load_weights, args=([], 1, False))
    loader.start()
    while thread.inbox.empty():
        time.sleep(0.01)
    engine.permits.release()
    loader.join(30)
    assert collected(thread, 1) == ["a"] and thread.collect(0.6) == []  # the next one runs
    engine.permits.release()
    assert collected(thread, 1) == ["b"]


def test_an_engine_sleeps_when_it_has_nothing_to_do_and_weights_that_come_part_by_part_hold_the_loop(chat):
    engine, thread = started(chat)
    thread.add([job(chat, "a", 2)])
    while not engine.submitted:
        time.sleep(0.01)

    def heard_between_two_steps():
        while thread.inbox.empty():
            time.sleep(0.01)
        engine.permits.release(2)

    threading.Thread(target=heard_between_two_steps).start()
    with pytest.raises(RuntimeError, match="an engine that has work cannot sleep"):
        thread.sleep()
    assert collected(thread, 1) == ["a"]
    thread.sleep()
    assert engine.asleep

    feed = Feed(5, 30, 30)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(thread.load_weights, feed, 5, True)
        for part in ("first", "second"):
            feed.put(part, loading)
        thread.add([job(chat, "b")])
        engine.permits.release()
        assert thread.collect(0.3) == [] and engine.version == 0  # the third part may come
        feed.close()
        assert loading.result(30) == {"load": 2.0}
    assert collected(thread, 1) == ["b"] and (engine.version, engine.parts) == (5, ["first", "second"])


def test_an_engine_that_does_not_start_raises_at_once(chat):
    with pytest.raises(ZeroDivisionError):
        LoopThread(lambda: 1 / 0, lambda name: build_protocol(name, Config(), chat), 1.0)
