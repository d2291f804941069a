import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from srl.config import RewardConfig
from srl.reward.grader import Grader
from srl.reward.pool import Comparison, WorkerPool
from srl.trajectory import Outcome

SLOW = r"\sum_{k=1}^{9999} k^{k}"  # runs until it is stopped
HUGE = "9^{9^{9}}"  # one step of Python's, of many minutes


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(processes=2, deadline_s=1.0, memory_mib=1024, recycle_after=1000)
    pool.warm()
    yield pool
    pool.close()


def outcomes(pool: WorkerPool, *comparisons: Comparison) -> list[Outcome | None]:
    return [reply.outcome for reply in pool.compare(comparisons)]


def test_replies_are_in_the_order_of_the_comparisons(pool: WorkerPool) -> None:
    found = outcomes(pool, *(Comparison(f"x+{index}", f"{index % 3}+x") for index in range(12)))
    assert found == [Outcome.CORRECT if index < 3 else Outcome.INCORRECT for index in range(12)]


def test_a_slow_comparison_is_a_timeout_and_holds_nobody_up(pool: WorkerPool) -> None:
    start = time.monotonic()
    found = outcomes(pool, Comparison(SLOW, "42"), *(Comparison(f"y+{index}", f"{index}+y") for index in range(20)))
    assert found == [Outcome.TIMEOUT] + [Outcome.CORRECT] * 20
    assert time.monotonic() - start < 30


def test_a_worker_that_cannot_stop_itself_is_killed_and_replaced(pool: WorkerPool) -> None:
    before, killed = {worker.pid for worker in pool.workers}, pool.killed
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    assert outcomes(pool, Comparison("z+1", "1+z"), Comparison("z+1", "z")) == [Outcome.TIMEOUT] * 2
    assert pool.killed == killed + 2
    assert outcomes(pool, Comparison("z+1", "1+z"), Comparison("z+1", "z")) == [Outcome.CORRECT, Outcome.INCORRECT]
    assert not before & {worker.pid for worker in pool.workers}


def test_an_endless_step_of_python_is_a_timeout_and_no_death(pool: WorkerPool) -> None:
    died = pool.died
    assert outcomes(pool, Comparison("x", "???"), Comparison(HUGE, "7")) == [None, Outcome.TIMEOUT]
    assert pool.died == died


def test_a_worker_that_alarms_cannot_reach_is_ended_by_the_kernel() -> None:
    pool = WorkerPool(processes=1, deadline_s=1.0, memory_mib=1024, recycle_after=1000)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})  # the new process inherits it
    try:
        pool.warm()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    assert outcomes(pool, Comparison(SLOW, "42"), Comparison("x+1", "1+x")) == [Outcome.TIMEOUT, Outcome.CORRECT]
    assert pool.killed == 1 and pool.died == 0
    pool.close()


def test_workers_cannot_take_more_memory_than_the_setting(pool: WorkerPool) -> None:
    pool.compare([Comparison("x+1", "1+x")])
    for worker in [worker for worker in pool.workers if worker.ready]:
        assert f"{1024 * 2**20}" in Path(f"/proc/{worker.pid}/limits").read_text()


def test_a_gold_that_does_not_parse_says_so(pool: WorkerPool) -> None:
    [reply] = pool.compare([Comparison("1", "???")])
    assert reply.outcome is None and reply.message == "gold '???' does not parse"


def test_workers_are_replaced_after_their_share_of_comparisons() -> None:
    pool = WorkerPool(processes=1, deadline_s=5, memory_mib=1024, recycle_after=3)
    pids = set()
    for index in range(8):
        assert outcomes(pool, Comparison(f"x+{index}", f"{index}+x")) == [Outcome.CORRECT]
        pids.add(pool.workers[0].pid)
    assert len(pids) == 3 and pool.died == pool.killed == 0
    pool.close()


def test_a_pool_whose_processes_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srl.reward.pool.FAILED_STARTS", 2)
    monkeypatch.setattr("srl.reward.template.sys.executable", "/bin/false")
    pool = WorkerPool(processes=1, deadline_s=5, memory_mib=1024, recycle_after=3)
    with pytest.raises(RuntimeError, match="2 grading workers in a row died or hung at their start"):
        pool.compare([Comparison("x", "y")])
    assert pool.workers == []


def test_workers_that_die_with_their_template_cost_no_result(pool: WorkerPool) -> None:
    pool.compare([Comparison("x+1", "1+x")])
    before = pool.template.process.pid
    os.kill(before, signal.SIGSTOP)
    for worker in pool.workers:
        os.kill(worker.pid, signal.SIGSTOP)
    os.kill(before, signal.SIGKILL)
    found = outcomes(pool, *(Comparison(f"w+{index}", f"{index % 3}+w") for index in range(6)))
    assert found == [Outcome.TIMEOUT] * 2 + [Outcome.CORRECT] + [Outcome.INCORRECT] * 3
    assert pool.template.process.pid != before


def test_workers_do_not_outlive_whoever_asked_for_them() -> None:
    code = """
import os, signal
from srl.reward.pool import Comparison, WorkerPool
pool = WorkerPool(processes=1, deadline_s=5, memory_mib=1024, recycle_after=1000)
pool.warm()
[worker] = pool.workers
os.kill(worker.pid, signal.SIGSTOP)
print(pool.template.process.pid, worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    pids = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=120).stdout.split()
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(running(int(pid)) for pid in pids):
        assert time.monotonic() < deadline, f"waited 60 s for processes {pids} to end"
        time.sleep(0.1)


def running(pid: int) -> bool:
    """A zombie whose parent is busy does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_thousand_gradings_survive_kill_9_of_their_workers() -> None:
    grader = Grader(RewardConfig(processes=2, deadline_s=20))
    pairs = [(rf"{index}x", rf"x \cdot {index + index % 2}") for index in range(2000)]
    stop = threading.Event()

    def kill_now_and_then() -> None:
        while not stop.wait(0.01):
            for worker in [worker for worker in grader.pool.workers if worker.answered >= 100]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    grades = grader.grade(pairs)
    stop.set()
    killer.join()
    assert grader.pool.died >= 1
    assert [grade.outcome is Outcome.CORRECT for grade in grades] == [index % 2 == 0 for index in range(2000)]
    grader.close()
