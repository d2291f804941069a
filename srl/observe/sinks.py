"""Measurements to Weights & Biases and to MLflow, whichever a run names. Both are optional packages, imported only here.

Where they send to and with which key is theirs to know (WANDB_*, MLFLOW_* in the environment); no key is read or written here.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from srl.config import ConfigError
from srl.observe.run_directory import RunDirectory, write_text

PROJECT = "srl"


@contextmanager
def open_sinks(names: list[str], run: RunDirectory, settings: dict[str, Any]) -> Iterator[None]:
    """While open, every record of the run goes there too. A run that is continued continues there."""
    modules = {name: importlib.import_module(name) for name in names}
    if "wandb" in modules:
        wandb = modules["wandb"]
        name = run.path.name
        wandb.init(project=PROJECT, name=name, id=name, resume="allow", dir=str(run.path), config=settings)
        run.listeners.append(lambda phase, step, values: wandb.log({f"{phase}/step": step, **numbers(phase, values)}))
    if "mlflow" in modules:
        mlflow = modules["mlflow"]
        start_mlflow(mlflow, run)
        run.listeners.append(lambda phase, step, values: mlflow.log_metrics(numbers(phase, values), step=step))
    try:
        yield
    finally:
        if "wandb" in modules:
            modules["wandb"].finish()
        if "mlflow" in modules:
            modules["mlflow"].end_run()


def check_sinks(names: list[str]) -> None:
    """Raises ConfigError for a sink whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.sinks: {name} is not installed (pip install {name})")


def start_mlflow(mlflow: ModuleType, run: RunDirectory) -> None:
    """MLflow chooses the id of a run; it is kept in the run directory."""
    file = run.file("mlflow-run")
    mlflow.set_experiment(PROJECT)
    started = mlflow.start_run(run_id=file.read_text() if file.exists() else None, run_name=run.path.name)
    write_text(file, started.info.run_id)


def numbers(phase: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{phase}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
