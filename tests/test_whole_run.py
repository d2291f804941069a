"""The main job on a shrunken configuration, as a user starts it: real vLLM, DeepSpeed, Ray, Ray Data and math-verify."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srl.config import SftConfig

ROOT = Path(__file__).parents[1]
SMALL = [
    "stage1.prompts=60", "stage1.block=20", "stage1.attempts=3", "stage1.verdicts=2", "sft.epochs=1", "rl.steps=2",
    "rl.prompts=8", "rl.group=4", "rl.evaluate_every=2", "evaluate.problems=40",
    "evaluate.validation_problems=16", "evaluate.samples_kept=5", "objective.kl=0.001",
]  # fmt: skip


def command(directory: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "srl.main", f"run.directory={directory}", *SMALL, *more]


def run(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(directory, *more), cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped by SIGTERM during sampling, continued with another number of engines, finished."""
    directory = tmp_path_factory.mktemp("runs")
    samples = directory / "tiny" / "stage1" / "samples"
    one_engine = command(directory, "rollout.workers=1")
    process = subprocess.Popen(one_engine, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not list(samples.glob("*.parquet")) and process.poll() is None:
        assert time.monotonic() < deadline, "no sample file after 300 s"
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[0]
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=80)  # `ray job stop` gives the driver 90 s
    assert process.returncode == 130, output
    assert "Traceback" not in output and "ERROR" not in output, output
    result = run(directory)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "evaluate-base: done before" in result.stdout
    assert not list(directory.rglob("*.partial")), "a half-written file is left"  # the stopped start may leave one for this one
    return directory / "tiny"


def test_the_run_directory_holds_every_promised_file(finished: Path):
    for name in ("config.yaml", "metrics.jsonl", "results.json", "trajectories.jsonl", "report.html", "stage1/card.json"):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "stage1").glob("*.parquet")) and list((finished / "tensorboard").iterdir())


def test_results_have_four_methods_whose_deltas_add_up(finished: Path):
    results = json.loads((finished / "results.json").read_text())
    assert results["schema"] == 1
    assert [row["method"] for row in results["rows"]] == ["base", "intrinsic", "ift", "rl"]
    for row in results["rows"]:
        assert row["n"] == 40 and 0 <= row["final"] <= 100
        assert row["delta"] == pytest.approx(row["i2c"] - row["c2i"], abs=0.011)
        assert row["delta"] == pytest.approx(row["final"] - row["turn1"], abs=0.011)


def test_every_problem_was_sampled_exactly_once_although_the_run_was_stopped(finished: Path):
    files = sorted((finished / "stage1" / "samples").glob("*.parquet"))
    ids = [row for file in files for row in pq.read_table(file, columns=["id"])["id"].to_pylist()]
    prompts = [row for file in files for row in pq.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()]
    attempts = [name for name in ids if name.count("/") == 1]
    assert len(ids) == len(set(ids)) and len(set(prompts)) == 60 and len(attempts) == 60 * 3


def test_the_first_update_after_a_sync_sees_the_policy_that_sampled(finished: Path):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["phase"] == "rl")
    assert first["weight_version"] > 0
    # Two optimizer steps: the first has ratio 1 and KL 0 up to float32 noise, the second has moved a little.
    assert abs(first["ratio"] - 1) < 0.02 and first["kl"] < 0.01


def test_checkpoints_load_in_transformers_and_differ(finished: Path):
    question = [{"role": "user", "content": "Start at 47: (1) +38 (2) -19 = ?"}]
    weights = {}
    for name in ("ift", "rl"):
        folder = finished / "checkpoints" / name
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert model.generate(**prompt, max_new_tokens=4).shape[1] == prompt["input_ids"].shape[1] + 4
        weights[name] = model.get_input_embeddings().weight
    assert not torch.equal(weights["ift"], weights["rl"])


def test_a_run_directory_of_another_configuration_is_refused(finished: Path):
    result = run(finished.parent, "sft.learning_rate=0.002")
    assert result.returncode == 2
    assert f"sft.learning_rate was {SftConfig().learning_rate}, now 0.002" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
