"""Measurements to Weights & Biases and to MLflow, whichever a run names. Both are optional packages, imported only here.

Where they send to and with which key is theirs to know (WANDB_*, MLFLOW_* in the environment); no key is read or written here.
"""

import importlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from srl.config import ConfigError
from srl.observe.progress import say
from srl.observe.run_directory import RunDirectory, write_text

PROJECT = "srl"
REST_S = 300.0  # before a sink that failed is tried again
MOST_WAITING = 1000  # records, while one is on its way: a package's own attempts can take minutes
CLOSE_S = 60.0  # longest wait for the last of them

Send = Callable[[str, int, Mapping[str, Any]], None]


@contextmanager
def open_sinks(names: list[str], run: RunDirectory, settings: dict[str, Any]) -> Iterator[None]:
    """While open, every record of the run goes there too. A run that is continued continues there.

    Raises ConfigError for a sink that cannot be opened. One that fails later is rested, and lacks what is recorded meanwhile.
    Training never waits for one.
    """
    with ExitStack() as opened:
        for name in names:
            module = importlib.import_module(name)
            try:
                send, finish = OPEN[name](module, run, settings)
            except Exception as error:  # of whatever class the package has
                raise ConfigError(f"run.sinks: {name} cannot be opened: {error}") from error
            sink = Sink(name, send)
            run.listeners.append(sink.take)
            opened.callback(sink.close, finish)
        yield


class Sink:
    """Sends records on, on a thread that training does not wait for; what goes wrong there is said once and never raised."""

    def __init__(self, name: str, send: Send, clock: Callable[[], float] = time.monotonic):
        self.name, self.send, self.clock = name, send, clock
        self.lacks, self.refused, self.resting_until = 0, 0, 0.0
        self.waiting: queue.Queue[tuple[str, int, Mapping[str, Any]] | None] = queue.Queue(MOST_WAITING)
        self.thread = threading.Thread(target=self._live, daemon=True, name=f"sink-{name}")
        self.thread.start()

    def take(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        try:
            self.waiting.put_nowait((phase, step, values))
        except queue.Full:
            self.refused += 1

    def _live(self) -> None:
        while (record := self.waiting.get()) is not None:
            self.pass_on(*record)

    def pass_on(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        if self.clock() < self.resting_until:
            self.lacks += 1
            return
        try:
            self.send(phase, step, values)
        except Exception as error:  # of whatever class the package has
            if not self.lacks:
                self._warn(f"took no record ({error}); it is tried again every {REST_S:g} s")
            self.lacks += 1
            self.resting_until = self.clock() + REST_S

    def close(self, finish: Callable[[], Any]) -> None:
        """Waits for the last records, `CLOSE_S` at most, and as long as the package takes to finish."""
        try:
            self.waiting.put(None, timeout=CLOSE_S)
            self.thread.join(CLOSE_S)
        except queue.Full:
            pass  # none was taken all that time
        left = sum(record is not None for record in [*self.waiting.queue]) + self.thread.is_alive()
        try:
            finish()
        except Exception as error:
            self._warn(f"was not closed ({error})")
        if lacks := self.lacks + self.refused + left:
            self._warn(f"lacks {lacks} records")

    def _warn(self, what: str) -> None:
        say(f"WARNING: run.sinks: {self.name} {what}; metrics.jsonl has all measurements")


def check_sinks(names: list[str]) -> None:
    """Raises ConfigError for a sink whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.sinks: {name} is not installed (pip install {name})")


def open_wandb(wandb: ModuleType, run: RunDirectory, settings: dict[str, Any]) -> tuple[Send, Callable[[], Any]]:
    kept = run.file("wandb-run")
    name, folder = run.path.name, str(run.path)
    started = wandb.init(project=PROJECT, name=name, id=known(kept), resume="allow", dir=folder, config=settings)
    write_text(kept, started.id)
    return lambda phase, step, values: started.log({f"{phase}/step": step, **numbers(phase, values)}), wandb.finish


def open_mlflow(mlflow: ModuleType, run: RunDirectory, settings: dict[str, Any]) -> tuple[Send, Callable[[], Any]]:
    kept = run.file("mlflow-run")
    mlflow.set_experiment(PROJECT)
    started = mlflow.start_run(run_id=known(kept), run_name=run.path.name)
    run_id = started.info.run_id
    write_text(kept, run_id)
    # Which run is the active one, MLflow knows on this thread alone.
    return lambda phase, step, values: mlflow.log_metrics(numbers(phase, values), step=step, run_id=run_id), mlflow.end_run


def known(kept: Path) -> str | None:
    """The id that a sink chose when this run directory was new; another directory of the same name is another run there."""
    return kept.read_text() if kept.exists() else None


OPEN = {"wandb": open_wandb, "mlflow": open_mlflow}


def numbers(phase: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{phase}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
