"""Heartbeats: a thread in every actor says what it does while it does it, and the board keeps the last word of each.

The thread samples, so the actor's methods need no hooks and stay on the thread that Ray gave them (graders use signals, which
only a main thread gets). An actor that holds Python's lock in native code is not heard, and that is what the board reports.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from srl.config import ConfigError
from srl.observe.health import Beat
from srl.observe.metrics import Exporter

BOARD = "health"
ID_DIGITS = 8  # of Ray's id of an actor: short to read, and two of a thousand actors share them in one of 8,000 runs
PACKAGE = str(Path(__file__).parents[1])
BOARD_TIMEOUT_S = 30.0


@ray.remote
class Board:
    """Where heartbeats arrive. Times are its own clock's, so that nodes need not agree on the time."""

    def __init__(self, interval_s: float):
        self.interval_s = interval_s
        self.beats: dict[str, Beat] = {}
        self.deaths: list[Beat] = []
        self.stacks: dict[str, str] = {}
        self.asked: set[str] = set()

    def beat(self, beat: Beat) -> tuple[float, bool]:
        """Keep it; returns the seconds until the next one and whether stacks are wanted."""
        now, last = time.monotonic(), self.beats.get(beat.name)
        starts, since, moved = 1, now, now
        if last is not None:
            if last.actor_id == beat.actor_id:
                starts = last.starts + (last.process != beat.process)
            if starts > last.starts:  # Ray has started it again
                self.deaths.append(last)
            since = last.since if last.doing == beat.doing else now
            moved = last.moved if last.counts == beat.counts else now
        self.beats[beat.name] = replace(beat, heard=now, since=since, moved=moved, starts=starts)
        wanted = beat.name in self.asked
        self.asked.discard(beat.name)
        return self.interval_s, wanted

    def put_stacks(self, name: str, text: str) -> None:
        self.stacks[name] = text

    def ask_for_stacks(self) -> None:
        """Every actor sends its stacks with one of its next heartbeats."""
        self.stacks, self.asked = {}, set(self.beats)

    def forget(self, name: str, actor_id: str) -> None:
        """Unless another actor has that name by now."""
        if name in self.beats and self.beats[name].actor_id == actor_id:
            del self.beats[name]

    def arrived_stacks(self) -> dict[str, str]:
        """By actor, since they were asked for."""
        return self.stacks

    def snapshot(self) -> tuple[float, list[Beat], list[Beat]]:
        """This clock's time, the last heartbeat of each actor, and the last ones of processes that Ray has replaced."""
        return time.monotonic(), sorted(self.beats.values(), key=lambda beat: (beat.role, beat.rank)), self.deaths


def create_board(interval_s: float):
    """On the driver's node, so that it lives and dies with the driver.

    Raises ConfigError while another driver on this cluster has one: the run's name is the actors' namespace.
    """
    context = ray.get_runtime_context()
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True)
    try:
        return Board.options(name=BOARD, num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote(interval_s)
    except ActorAlreadyExistsError:
        name = context.namespace.removeprefix("srl-")
        raise ConfigError(
            f"run.name={name}: a run of that name is alive on this cluster; let it end, stop it, or choose another run.name"
        ) from None


def start_pulse(
    role: str,
    rank: int | None,
    counts: Callable[[], Mapping[str, float]] = dict,
    levels: Callable[[], Mapping[str, float]] = dict,
) -> None:
    """Called by an actor: from now on this process exports its numbers and is heard by the board, if the run has one.

    Where nobody numbers the actors, `rank` is None, and the first digits of Ray's id of this one take its place: unlike a pid
    they are no other actor's, and they stay when Ray starts it again. `counts` grow as long as the actor works; `levels` are
    what is now. Both are called from another thread. Outside Ray, where nobody listens, nothing happens.
    """
    if not ray.is_initialized():
        return
    threading.Thread(target=live, args=(role, rank, counts, levels), daemon=True, name="srl-pulse").start()


def live(
    role: str, rank: int | str | None, counts: Callable[[], Mapping[str, float]], levels: Callable[[], Mapping[str, float]]
) -> None:
    context = ray.get_runtime_context()
    node, actor_id = ray.util.get_node_ip_address(), context.get_actor_id() or ""
    rank = actor_id[:ID_DIGITS] if rank is None else rank
    exporter = Exporter(context.namespace.removeprefix("srl-"), role, rank)
    board, wait_s = None, 5.0
    while True:
        beat = heartbeat(role, rank, actor_id, node, dict(counts()), dict(levels()))
        export(exporter, beat)
        try:
            board = board or ray.get_actor(BOARD)
            wait_s, wanted = ray.get(board.beat.remote(beat), timeout=BOARD_TIMEOUT_S)
            if wanted:
                board.put_stacks.remote(beat.name, stacks())
        except (ValueError, RayActorError, GetTimeoutError):
            # No board: the actor was started by a test or by another program, or the board is being restarted.
            board = None
        time.sleep(wait_s)


def heartbeat(role: str, rank: int | str, actor_id: str, node: str, counts: dict[str, float], levels: dict[str, float]) -> Beat:
    process = psutil.Process()
    used, limit = node_memory()
    return Beat(role, rank, actor_id, node, process.pid, doing(), process.memory_info().rss, used, limit, counts, levels)


def export(exporter: Exporter, beat: Beat) -> None:
    for name, total in beat.counts.items():
        exporter.count(f"{beat.role}_{name}", total)
    for name, value in beat.levels.items():
        exporter.level(f"{beat.role}_{name}", value)
    exporter.level("resident_bytes", beat.resident)
    exporter.level("node_memory_share", beat.node_used / max(1, beat.node_limit))


def doing() -> str:
    """The functions of srl that threads are in, outermost and innermost: `train>backward`; `idle` when there is none."""
    places = []
    for identity, frame in sys._current_frames().items():
        if identity == threading.get_ident():
            continue
        names = []
        while frame is not None:  # from the innermost call outwards
            if frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_filename.endswith("main.py"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        if names:
            places.append(names[-1] if len(names) == 1 else f"{names[-1]}>{names[0]}")
    return ", ".join(sorted(places)) or "idle"


def stacks() -> str:
    """The Python stacks of all threads of this process, the most recent call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(identity, identity)}\n" + "".join(traceback.format_stack(frame))
        for identity, frame in sys._current_frames().items()
    )


def node_memory() -> tuple[int, int]:
    """Bytes used and bytes there are: of the container where it has a limit, else of the machine."""
    machine = psutil.virtual_memory()
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Cached files are given back when memory is short.
        return used - int(statistics.get("inactive_file", 0)), limit
    except (OSError, ValueError):  # no such files, or "max"
        return machine.total - machine.available, machine.total
