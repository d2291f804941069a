"""The driver's eye on its actors: status for people, alarms, stacks of a run that has stopped moving."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray._private.state
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from srl.config import Config
from srl.observe.health import Beat, killed_for_memory, likely_cause, memory_risks, silent, stalled
from srl.observe.metrics import Exporter
from srl.observe.progress import say
from srl.observe.pulse import BOARD_TIMEOUT_S, create_board, export, heartbeat, stacks
from srl.observe.run_directory import RunDirectory, identity, write_text
from srl.observe.sinks import open_sinks

SILENT_BEATS = 6  # missed heartbeats after which an actor is called silent


@contextmanager
def observed(config: Config, run: RunDirectory) -> Iterator[None]:
    """While open, the run is watched and exported; needs Ray. An actor's death is explained before it is raised."""
    with open_sinks(config.run.sinks, run, identity(config)):
        watchdog = Watchdog(run, config.run.name, config.run.heartbeat_s, config.run.stall_s, say)
        try:
            yield
        except Exception as error:
            if cause := watchdog.explain(error):
                say(f"ALARM: {cause}")
            raise
        finally:
            watchdog.close()


class Watchdog:
    """A thread beside the driver. `tell` hears every alarm once; the run goes on, its own deadlines end it."""

    def __init__(self, run: RunDirectory, name: str, interval_s: float, stall_s: float, tell: Callable[[str], None]):
        self.run, self.name, self.interval_s, self.stall_s, self.tell = run, name, interval_s, stall_s, tell
        self.exporter = Exporter(name, "driver", 0)
        self.board = create_board(interval_s)
        self.node = ray.util.get_node_ip_address()
        self.beats: list[Beat] = []
        self.gone: list[Beat] = []
        self.clock = 0.0
        self.told: set[str] = set()
        self.alarms: list[str] = []
        self.ended = threading.Event()
        run.listeners.append(self._record)
        self.thread = threading.Thread(target=self._live, daemon=True, name="srl-watchdog")
        self.thread.start()

    def close(self) -> None:
        """Stop looking, and say in status.json that the run has ended."""
        self.ended.set()
        self.thread.join(timeout=5)
        self._write()

    def explain(self, error: BaseException) -> str | None:
        """The likely cause when an actor's death is among the causes of `error`."""
        return cause_of(error, [*self.beats, *self.gone], self.clock)

    def _live(self) -> None:
        while not self.ended.wait(self.interval_s):
            try:
                self._look()
            except (RayError, OSError) as error:  # GetTimeoutError is a RayError
                if self.clock:  # on a busy machine the board itself takes a while to start
                    self._alarm("board", f"no heartbeats can be read: {type(error).__name__}")

    def _look(self) -> None:
        self.clock, self.beats, deaths = ray.get(self.board.snapshot.remote(), timeout=BOARD_TIMEOUT_S)
        if self.ended.is_set():  # Ray may be down by now, and a call would start another one
            return
        self._forget_the_dead()
        # It sends the board nothing, and may be alone on its node.
        driver = replace(heartbeat("driver", 0, "", self.node, {}, {}), heard=self.clock)
        self._judge(deaths, driver)
        self.exporter.repeat_levels()
        export(self.exporter, driver)
        self._write()

    def _forget_the_dead(self) -> None:
        """Actors that were closed, or died for good, are no longer waited for; who used them gets their error."""
        for beat in self.beats:
            if self.clock - beat.heard > 2 * self.interval_s and is_dead(beat.actor_id):
                self.gone.append(beat)
                self.board.forget.remote(beat.name, beat.actor_id)
        self.beats = [beat for beat in self.beats if beat not in self.gone]

    def _judge(self, deaths: list[Beat], driver: Beat) -> None:
        for beat in deaths:
            line = f"{likely_cause(beat.actor_id, '', [beat], self.clock)}. Ray started it again"
            self._alarm(f"death {beat.process}", line)
        for beat in silent(self.beats, self.clock, SILENT_BEATS * self.interval_s):
            line = f"{beat.name} on {beat.node} (pid {beat.pid}) has not been heard for {self.clock - beat.heard:.0f} s"
            self._alarm(f"silent {beat.process}", f"{line}; it was in {beat.doing}")
        for line in memory_risks([*self.beats, driver]):
            self._alarm("memory " + line.split(" uses ")[0], line)
        still = self._still_s()
        self.exporter.level("moved_seconds", still)
        if line := stalled(self.beats, self.run.current, still, self.clock, self.stall_s):
            if "stall" not in self.told:
                self._alarm("stall", f"{line}; stacks: {self._dumped()}")
        else:
            self.told.discard("stall")

    def _still_s(self) -> float:
        """Seconds since the driver recorded something or a count of an actor grew."""
        return min([time.monotonic() - self.run.moved, *(self.clock - beat.moved for beat in self.beats)])

    def _alarm(self, key: str, line: str) -> None:
        if key in self.told:
            return
        self.told.add(key)
        self.alarms.append(line)
        self.exporter.alarm()
        self.tell(f"ALARM: {line}")

    def _record(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        self.exporter.record(phase, step, values)
        if phase == "alarm":
            self.alarms.append(f"{values['name']} at step {step}: {values['meaning']}")

    def _dumped(self) -> str:
        """Where the stacks are, or why they are not there: the stall is said in any case."""
        try:
            return str(self._dump())
        except (RayError, OSError) as error:  # GetTimeoutError is a RayError
            return f"none ({type(error).__name__}: {error})"

    def _dump(self) -> Path:
        """Stacks of the driver and of every actor that still answers, in one file."""
        ray.get(self.board.ask_for_stacks.remote(), timeout=BOARD_TIMEOUT_S)
        time.sleep(2 * self.interval_s)
        by_actor = ray.get(self.board.arrived_stacks.remote(), timeout=BOARD_TIMEOUT_S)
        parts = [f"==== driver\n{stacks()}"]
        parts += [
            f"==== {beat.name}, pid {beat.pid} on {beat.node}\n{by_actor.get(beat.name, 'no answer')}" for beat in self.beats
        ]
        file = self.run.file(f"stacks-{int(time.time())}.txt")
        write_text(file, "\n".join(parts))
        return file

    def _write(self) -> None:
        """A volume that does not take the file for a while must not end the watch, nor hide the error that ends the run."""
        file = self.run.file("status.json")
        try:
            write_text(file, json.dumps(self.state(), indent=1))
        except OSError as error:
            self._alarm("status", f"{file} was not written: {error}; it is tried again every {self.interval_s:g} s")

    def state(self) -> dict[str, Any]:
        """What `status` shows."""
        return {
            "written": time.time(),
            "interval_s": self.interval_s,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "ended": self.ended.is_set(),
            "phase": self.run.current,
            "step": self.run.step,
            "moved_s": round(self._still_s(), 1),
            "actors": [
                {**asdict(beat), "heard_s": round(self.clock - beat.heard, 1), "since_s": round(self.clock - beat.since, 1)}
                for beat in self.beats
            ],
            "alarms": self.alarms[-20:],
        }


def cause_of(error: BaseException | None, beats: Sequence[Beat], now: float) -> str | None:
    """The likely cause of the first actor's death among the causes of `error`, if its heartbeat is among `beats`."""
    while error is not None:
        actor_id = error.actor_id if isinstance(error, RayActorError) else None
        if isinstance(error, OutOfMemoryError) and (killed := killed_for_memory(str(error), beats)):
            actor_id = killed.actor_id  # this error is no RayActorError, and only its text says who died
        if actor_id:
            return likely_cause(actor_id, str(error), beats, now)
        error = error.__cause__
    return None


def is_dead(actor_id: str) -> bool:
    # Ray's public state API needs a dashboard, which a local Ray does without.
    return ray._private.state.actors(actor_id).get("State") == "DEAD"
