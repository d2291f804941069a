"""Stage 2 killed with -9 and started again: every prompt is trained once, and the end is that of a run left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
STEPS, PROMPTS = 4, 4
SMALL = [
    "rl.start=base", f"rl.steps={STEPS}", f"rl.prompts={PROMPTS}", "rl.group=4", "rl.mini_batches=1", "rl.evaluate_every=2",
    "evaluate.validation_problems=8", "rollout.threads=1", "learner.threads=1", "rollout.max_response_tokens=200",
]  # fmt: skip


def start(directory: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "srl.main", "rl", f"run.directory={directory}", *SMALL]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(directory: Path) -> Path:
    process = start(directory)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return directory / "tiny"


def records(run: Path, name: str, phase: str = "rl") -> list[dict]:
    file = run / name
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [record for record in found if record["phase"] == phase]


def killed(directory: Path, lines: int) -> None:
    """Start, wait until so many steps are recorded, kill the driver with -9 and wait until its engines are gone."""
    process = start(directory)
    deadline = time.monotonic() + 400
    while len(records(directory / "tiny", "metrics.jsonl")) < lines:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(left alone, killed in its third step and continued)"""
    alone, disturbed = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("disturbed")
    killed(disturbed, 2)
    return finish(alone), finish(disturbed)


def test_every_prompt_is_trained_once_although_the_run_was_killed(runs):
    settled = [[group["position"] for line in records(run, "ledger.jsonl") for group in line["groups"]] for run in runs]
    assert settled[0] == settled[1] == list(range(STEPS * PROMPTS))


def test_a_killed_run_records_every_step_once_with_the_numbers_of_one_left_alone(runs):
    alone, disturbed = (records(run, "metrics.jsonl") for run in runs)
    assert [record["step"] for record in disturbed] == list(range(STEPS))
    for expected, found in zip(alone, disturbed, strict=True):
        for name in ("reward", "turn1", "final", "tokens", "loss", "gradient_norm", "kl"):
            assert found.get(name) == pytest.approx(expected.get(name), rel=1e-3, abs=1e-5), name
    validations = [[record["step"] for record in records(run, "metrics.jsonl", "rl-validation")] for run in runs]
    assert validations[0] == validations[1] == [0, 2, 4]


def test_a_killed_run_ends_with_the_weights_of_one_left_alone(runs):
    alone, disturbed = (load_file(run / "checkpoints" / "rl" / "model.safetensors") for run in runs)
    for name, tensor in alone.items():
        torch.testing.assert_close(disturbed[name], tensor, rtol=0, atol=1e-4)


def test_rollout_and_learner_shook_hands(runs):
    assert all(record["gap"] < 1e-4 and record["tokens"] > 50 for record in records(runs[0], "metrics.jsonl", "handshake"))


def test_the_first_step_after_a_sync_has_ratio_one_and_kl_zero(runs):
    first = next(record for record in records(runs[0], "metrics.jsonl") if "ratio" in record)
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["policy_age_max"] == 0 and first["logprob_gap"] < 1e-4


def test_nothing_to_resume_from_is_left_when_the_phase_is_done(runs):
    assert not (runs[1] / "resume" / "rl").exists()
