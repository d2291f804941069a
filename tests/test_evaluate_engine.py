"""Evaluation with real engines: any model on a file of problems, and rows that do not depend on the number of workers."""

import json
import shutil
from pathlib import Path

import pytest

from srl.config import Config, load_config
from srl.driver.models import Asked, evaluate_models
from srl.evaluation.cell import Trajectories
from srl.observe.run_directory import RunDirectory
from srl.observe.status import format_status
from srl.protocols.chat import model_folder
from srl.tasks.problems import chain_problems

pytestmark = pytest.mark.long


def config_in(directory: Path, *more: str) -> Config:
    small = [
        "run.local_cpus=10",
        "evaluate.bootstrap=100",
        "rollout.threads=1",
        "rollout.max_sequences=8",
        "evaluate.block=8",
        "evaluate.problems=24",
    ]
    return load_config(None, [f"run.directory={directory}", *small, *more])


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "own.jsonl"
    rows = [{"problem": problem.question, "answer": problem.gold} for problem in chain_problems("test", 24, 5, 3, 4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, problems: Path) -> list[RunDirectory]:
    """One worker, the base model and a checkpoint that equals it; two workers and other blocks, a copy of the base model."""
    directory = tmp_path_factory.mktemp("runs")
    checkpoint = shutil.copytree(model_folder("embedded"), directory / "one" / "checkpoints" / "ift")
    one = config_in(directory, "name=one")
    two = config_in(directory, "name=two", "rollout.workers=2", "evaluate.block=3", "run.heartbeat_s=0.5")
    asked = [Asked(model, protocol, 0.8) for model in ("base", "ift") for protocol in ("prompted", "intrinsic")]
    evaluate_models(one, asked, [str(problems)])
    evaluate_models(two, [Asked(str(checkpoint), "prompted", 0.8)], [str(problems)])
    return [RunDirectory(one), RunDirectory(two)]


def same(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in ("method", "model", "evaluation")}


def test_several_models_and_protocols_in_one_call_give_a_row_each(runs: list[RunDirectory]):
    rows = runs[0].rows()
    assert [row["method"] for row in rows] == ["base, T 0.8", "intrinsic, T 0.8", "ift, prompted, T 0.8", "ift, intrinsic, T 0.8"]
    assert all(row["benchmark"] == "own" and row["n"] == 24 for row in rows)


def test_equal_weights_give_equal_rows(runs: list[RunDirectory]):
    rows = runs[0].rows()
    assert [same(row) for row in rows[:2]] == [same(row) for row in rows[2:]]


def test_rows_and_tokens_do_not_depend_on_engine_blocks_and_number_of_workers(runs: list[RunDirectory]):
    one, two = (run.rows()[0] for run in runs)
    assert same(one) == same(two)
    tokens = []
    for run in runs:
        folder = next(folder for folder in run.file("evaluations").iterdir() if "intrinsic" not in folder.name)
        kept = Trajectories(folder, json.loads((folder / "identity.json").read_text())).read()
        tokens.append({name: trajectory.token_ids() for name, trajectory in kept.items()})
    assert len(tokens[0]) == 24 and tokens[0] == tokens[1]


def test_an_evaluation_is_watched_as_a_run_is(runs: list[RunDirectory]):
    state = json.loads(runs[1].file("status.json").read_text())
    assert state["ended"] and {"rollout", "reward"} <= {actor["role"] for actor in state["actors"]}
    assert "two: finished what was asked for" in format_status(runs[1].path, state["written"] + 1)
