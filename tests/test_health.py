"""What heartbeats mean, and that actors are heard while they work: real Ray, no engine."""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError

from srl.config import Config, ConfigError, RunConfig
from srl.observe import pulse
from srl.observe.health import Beat, killed_for_memory, likely_cause, memory_risks, silent, stalled
from srl.observe.pulse import BOARD, Board, start_pulse
from srl.observe.run_directory import RunDirectory
from srl.observe.watchdog import Watchdog, is_dead, observed

GIB = 2**30
LEARNER = Beat("learner", 0, "a1", "10.0.0.1", 41, "train>backward", 9 * GIB, 10 * GIB, 16 * GIB, heard=100, moved=90, since=95)
ROLLOUT = Beat("rollout", 1, "b2", "10.0.0.2", 42, "idle", 2 * GIB, 4 * GIB, 16 * GIB, heard=88, moved=60, since=60)

# What Ray 2.60 writes of an actor that a signal kills or a segmentation fault, of one whose node is lost, and its memory
# monitor's report of one that still ran its constructor, the other actor being spared.
CRASH = """The actor died unexpectedly before finishing this task.
\tclass_name: Learner
\tactor_id: a1
\tpid: 41
\tip: 10.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly \
exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer \
due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another \
unexpected error. If the process was killed by the kernel OOM killer (verifiable by checking for OOM in dmesg of the OOMing \
node), consider enabling resource isolation via --enable-resource-isolation to prevent node deaths by resource contention and \
significant loss of progress by uninformed kernel OOM killing."""
NODE = """The actor died unexpectedly before finishing this task.
\tclass_name: Learner
\tactor_id: a1
The actor died because its node has died. Node Id: f36c655636db58e1e08e94d510664251213dc504277b1d4ea6590ce3
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
MONITOR = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1, ID: f11745) was \
8.23GB used / 23.54GB limit (0.349701)
OOM kill reason: Memory usage 8741367808B exceeded threshold of 8720397312B (34.5% of 25276514304B limit)
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
(Actor(63a1b3e602ad0c1e803f4be401000000): job ID=01000000, lease ID=0000, task name=A.__init__, required resources={}, pid=43)
Selected to kill: (Task: job ID=01000000, lease ID=00000000e678, task name=Learner.__init__, required resources={}, pid=41, \
actual memory used=0.05GB, worker ID=3224f859872fa515fcfde910470ffd1de6574a748331f7260b407d12)
]
Total non-selected idle workers: 1
To see more information about memory usage on this node, use `ray logs raylet.out -ip 10.0.0.1`
Refer to the documentation on how to address the out of memory issue."""


def test_only_who_was_not_heard_for_the_limit_is_silent():
    assert silent([LEARNER, ROLLOUT], now=100, limit_s=10) == [ROLLOUT]
    assert silent([LEARNER, ROLLOUT], now=100, limit_s=12) == []


def test_a_stall_names_who_is_busy_with_what():
    assert stalled([LEARNER, ROLLOUT], "rl", still_s=10, now=101, limit_s=10) is None
    line = stalled([LEARNER, ROLLOUT], "rl", still_s=11, now=101, limit_s=10)
    assert line == "phase rl has not moved for 11 s: learner 0 in train>backward for 6 s"
    assert stalled([ROLLOUT], "rl", still_s=41, now=101, limit_s=10) == "phase rl has not moved for 41 s: every actor is idle"


def test_a_full_node_is_named_with_its_largest_actors_and_the_settings_that_matter():
    full = replace(LEARNER, node_used=15 * GIB)
    neighbour = replace(ROLLOUT, node="10.0.0.1", heard=99)  # an older look at the same node does not count
    assert memory_risks([LEARNER, ROLLOUT]) == []
    (line,) = memory_risks([neighbour, full])
    assert line.startswith("node 10.0.0.1 uses 94% of its 16.0 GiB memory (learner 0 9.0 GiB, rollout 1 2.0 GiB); ")
    assert "learner.micro_batch_tokens" in line


@pytest.mark.parametrize(
    ("message", "used", "cause"),
    [
        (CRASH, 15, "out of memory; settings that change it: learner.micro_batch_tokens"),
        (MONITOR, 5, "out of memory; settings that change it: learner.micro_batch_tokens"),
        (NODE, 5, "its node left the cluster"),
        (CRASH, 5, "killed by a signal or by an error in native code"),
        (CRASH.replace("class_name: Learner", "namespace: srl-bloom"), 5, "killed by a signal or by an error in native code"),
    ],
)
def test_a_death_is_explained_by_the_last_heartbeat_and_rays_message(message: str, used: int, cause: str):
    line = likely_cause("a1", message, [ROLLOUT, replace(LEARNER, node_used=used * GIB)], now=103)
    assert line.startswith("learner 0 on 10.0.0.1 (pid 41) died in train>backward; 3 s before, it had 9.0 GiB resident")
    assert cause in line


def test_the_memory_monitors_report_says_which_process_it_killed_on_which_node():
    spared, elsewhere = replace(LEARNER, pid=43), replace(LEARNER, node="10.0.0.11")
    assert killed_for_memory(MONITOR, [ROLLOUT, spared, elsewhere, LEARNER]) is LEARNER
    assert killed_for_memory(MONITOR, [ROLLOUT, spared, elsewhere]) is None
    assert killed_for_memory(MONITOR.replace("(Task:", "(Actor(a1):"), [spared, LEARNER]) is LEARNER


def test_an_actor_that_was_never_heard_is_not_explained():
    assert likely_cause("zz", "died", [LEARNER], 100) is None


def test_the_board_keeps_when_counts_moved_and_counts_restarts():
    board = Board.__ray_metadata__.modified_class(2.0)
    board.beat(replace(LEARNER, counts={"tokens": 1}))
    (first,) = board.snapshot()[1]
    time.sleep(0.01)
    board.beat(replace(LEARNER, counts={"tokens": 1}, doing="idle"))
    (second,) = board.snapshot()[1]
    assert second.moved == first.moved and second.since > first.since and second.heard > first.heard
    board.beat(replace(LEARNER, counts={"tokens": 2}, pid=77))
    _, (third,), (dead,) = board.snapshot()
    assert third.moved > second.moved and third.starts == 2 and dead.pid == 41
    board.beat(replace(LEARNER, counts={"tokens": 3}, pid=77, node="10.0.0.2"))  # another pod counts its own pids
    (fourth,) = board.snapshot()[1]
    assert fourth.starts == 3


class Worker:
    """Stands for any actor: it works without a pause and is asked nothing."""

    def __init__(self):
        self.counts = {"steps": 0}
        start_pulse("rollout", 0, lambda: self.counts)

    def pid(self) -> int:
        return os.getpid()

    def work(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.counts["steps"] += 1
            time.sleep(0.01)

    def hang(self) -> None:
        threading.Event().wait(3600)


class Sampler(Worker):
    """In a pod of its own: process 412 there, whatever it is in other pods."""

    def __init__(self, node: str, done: int):
        real = pulse.heartbeat
        pulse.heartbeat = lambda *beat: replace(real(*beat), pid=412, node=node)
        self.counts = {"steps": done}
        start_pulse("sampler", None, lambda: self.counts)

    def ray_id(self) -> str:
        return ray.get_runtime_context().get_actor_id()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory):
    """A run directory whose watchdog looks five times a second and calls two seconds without movement a stall."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local",
        num_cpus=4,
        namespace="srl-tiny",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    run = RunDirectory(Config(run=RunConfig(directory=str(tmp_path_factory.mktemp("runs")))))
    lines: list[str] = []
    watchdog = Watchdog(run, "tiny", interval_s=0.2, stall_s=2.0, tell=lines.append)
    yield watchdog, run, lines
    watchdog.close()
    run.close()
    ray.shutdown()


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.05)


def beat_of(watchdog: Watchdog, pid: int) -> Beat | None:
    return next((beat for beat in watchdog.beats if beat.pid == pid), None)


def test_an_actor_is_heard_while_it_works(watched):
    watchdog, _, _ = watched
    actor = ray.remote(Worker).remote()
    pid = ray.get(actor.pid.remote())
    work = actor.work.remote(4)
    wait_for(lambda: (beat := beat_of(watchdog, pid)) and beat.counts["steps"] > 0, "a heartbeat from inside the call")
    before = beat_of(watchdog, pid)
    wait_for(lambda: beat_of(watchdog, pid).counts["steps"] > before.counts["steps"], "the next heartbeat")
    assert before.resident > 10 * 2**20 and before.node_limit > before.node_used > 0
    assert not ray.wait([work], timeout=0)[0], "the call ended before the test looked"
    ray.kill(actor)


def test_a_closed_actor_is_forgotten_without_an_alarm(watched):
    watchdog, _, lines = watched
    actor = ray.remote(Worker).remote()
    pid = ray.get(actor.pid.remote())
    wait_for(lambda: beat_of(watchdog, pid), "a heartbeat")
    ray.kill(actor)
    wait_for(lambda: not beat_of(watchdog, pid), "the board to forget the actor")
    assert not any(str(pid) in line for line in lines)


def test_a_second_run_of_one_name_on_one_cluster_is_refused_while_the_first_is_alive(watched, tmp_path: Path):
    assert ray.get_actor(BOARD), "the first one's"
    config = Config(run=RunConfig(directory=str(tmp_path)))  # elsewhere, so that no lock is in its way
    with (
        pytest.raises(ConfigError, match=r"^run.name=tiny: a run of that name is alive on this cluster; .*[^\n]$"),
        observed(config, RunDirectory(config)),
    ):
        pass


def test_a_stall_is_told_once_with_the_stacks_of_everybody(watched):
    _, run, lines = watched
    actor = ray.remote(Worker).remote()
    pid = ray.get(actor.pid.remote())
    actor.hang.remote()
    run.record("sft", 0, loss=1.0)
    time.sleep(0.5)
    lines.clear()
    wait_for(lambda: any("has not moved" in line for line in lines), "the stall alarm")
    time.sleep(1)
    (line,) = [line for line in lines if "has not moved" in line]
    assert line.startswith("ALARM: phase start has not moved for ") and "; stacks: " in line
    text = Path(line.split("; stacks: ")[1]).read_text()
    assert f"==== rollout 0, pid {pid}" in text and "in hang" in text and "==== driver" in text
    ray.kill(actor)


def test_two_samplers_with_one_pid_in_two_pods_are_two_actors_and_a_stall_when_both_stand_still(watched):
    watchdog, _, lines = watched
    actors = [ray.remote(Sampler).remote("10.0.0.1", 1000), ray.remote(Sampler).remote("10.0.0.2", 2000)]
    names = sorted(f"sampler {ray.get(actor.ray_id.remote())[:8]}" for actor in actors)
    wait_for(lambda: len([beat for beat in watchdog.beats if beat.role == "sampler"]) == 2, "both samplers")
    samplers = [beat for beat in watchdog.beats if beat.role == "sampler"]
    assert [beat.name for beat in samplers] == names and {beat.pid for beat in samplers} == {412}
    assert {(beat.node, beat.counts["steps"]) for beat in samplers} == {("10.0.0.1", 1000), ("10.0.0.2", 2000)}
    lines.clear()
    wait_for(lambda: any("has not moved" in line for line in lines), "the stall alarm")
    for actor in actors:
        ray.kill(actor)


def test_a_killed_and_restarted_actor_is_explained(watched):
    watchdog, _, lines = watched
    actor = ray.remote(Worker).options(max_restarts=1).remote()
    pid = ray.get(actor.pid.remote())
    wait_for(lambda: beat_of(watchdog, pid), "a heartbeat")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: any(f"(pid {pid}) died" in line for line in lines), "the death to be told")
    (line,) = [line for line in lines if f"(pid {pid}) died" in line]
    assert line.endswith("Ray started it again") and "GiB resident" in line
    wait_for(lambda: any(beat.starts == 2 for beat in watchdog.beats), "the new process's heartbeat")
    ray.kill(actor)


def test_the_error_of_a_dead_actor_becomes_its_likely_cause(watched):
    watchdog, _, _ = watched
    actor = ray.remote(Worker).remote()
    pid = ray.get(actor.pid.remote())
    wait_for(lambda: beat_of(watchdog, pid), "a heartbeat")
    work = actor.work.remote(3600)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RayActorError) as caught:
        ray.get(work, timeout=60)
    wait_for(lambda: is_dead(caught.value.actor_id), "Ray to know of the death")
    wrapped = RuntimeError("a training step failed")
    wrapped.__cause__ = caught.value
    cause = watchdog.explain(wrapped)
    assert f"(pid {pid}) died in " in cause and "killed by a signal or by an error in native code" in cause
    assert watchdog.explain(ValueError("another thing")) is None


def test_the_status_file_says_where_the_run_is(watched):
    _, run, _ = watched
    with run.phase("sft"):
        run.record("sft", 7, loss=0.5)
        wait_for(lambda: json.loads(run.file("status.json").read_text())["step"] == 7, "the status file")
    state = json.loads(run.file("status.json").read_text())
    assert state["phase"] == "sft" and state["pid"] == os.getpid() and not state["ended"]


def test_a_full_node_with_nothing_but_the_driver_on_it_is_told_and_exported(watched, monkeypatch):
    watchdog, _, lines = watched
    wait_for(lambda: not watchdog.beats, "the board to forget the actors of other tests")
    shares: list[tuple[float, str]] = []
    gauge = SimpleNamespace(set=lambda value, tags: shares.append((value, tags["role"])))
    monkeypatch.setitem(watchdog.exporter.gauges, "srl_node_memory_share", gauge)
    monkeypatch.setattr("srl.observe.pulse.node_memory", lambda: (15 * GIB, 16 * GIB))
    wait_for(lambda: any(" memory (driver 0 " in line for line in lines), "the alarm")
    (line,) = [line for line in lines if " memory (driver 0 " in line]
    assert line.startswith(f"ALARM: node {watchdog.node} uses 94% of its 16.0 GiB memory (driver 0 ")
    wait_for(lambda: (0.9375, "driver") in shares, "the share")


def test_what_was_recorded_once_is_exported_at_every_look(watched):
    watchdog, run, _ = watched
    run.record("sft", 9, loss=0.125)
    set_to: list[float] = []
    watchdog.exporter.gauges["srl_sft_loss"] = SimpleNamespace(set=lambda value, tags: set_to.append(value))
    wait_for(lambda: len(set_to) >= 3, "three looks")
    assert set(set_to) == {0.125}


def test_a_volume_that_fails_for_a_while_neither_ends_the_watch_nor_hides_how_the_run_ends(watched, monkeypatch):
    watchdog, run, lines = watched

    def fails(path: Path, text: str) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("srl.observe.watchdog.write_text", fails)
        wait_for(lambda: any("status.json was not written: [Errno 116] Stale file handle" in line for line in lines), "an alarm")
        run.record("sft", 8, loss=0.5)
        time.sleep(1)
    wait_for(lambda: json.loads(run.file("status.json").read_text())["step"] == 8, "the status file")
    assert sum("status.json was not written" in line for line in lines) == 1
    monkeypatch.setattr("srl.observe.watchdog.write_text", fails)
    watchdog.close()
    assert not json.loads(run.file("status.json").read_text())["ended"]


def test_a_full_node_is_told_with_its_three_largest_and_what_makes_the_largest_of_them_smaller():
    sizes = {"reward": 1, "rollout": 5, "learner": 3, "judge": 2}
    full = [replace(LEARNER, role=role, resident=size * GIB, node_used=15 * GIB) for role, size in sizes.items()]
    largest = "(rollout 0 5.0 GiB, learner 0 3.0 GiB, judge 0 2.0 GiB); settings that change it: rollout.kv_cache_gib or"
    assert largest in memory_risks(full)[0]
    assert memory_risks(full[:1])[0].endswith("settings that change it: reward.workers")
    assert memory_risks(full[3:])[0].endswith("settings that change it: the size of the batch")
