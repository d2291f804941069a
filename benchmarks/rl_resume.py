"""Kills stage 2 with -9 at random moments and compares its end with an undisturbed run.

    python -m benchmarks.rl_resume [--kills 20] [--seed 0] [--folder DIR] [section.key=value ...]

The driver and everything it started are killed, with real engines and learners: some while they start, the others up to
`WITHIN_S` seconds after the steps go on. Prints JSON: what had been done at each kill, whether every prompt was trained once, and
the largest difference of the final weights and of the recorded numbers to those of the undisturbed run. Exit status 1 if a prompt
was not trained once, a step not recorded once, or a weight differs by more than `TOLERANCE`.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.refusal import Failed, check_runs, last_words, refusing
from srl.commands.numbers import at_least

ROOT = Path(__file__).parents[1]
SMALL = [
    "rl.start=base", "rl.prompts=4", "rl.group=4", "rl.mini_batches=1", "rl.evaluate_every=4", "evaluate.validation_problems=8",
    "rollout.workers=1", "rollout.threads=1", "learner.threads=1", "rollout.max_response_tokens=200",
]  # fmt: skip
WITHIN_S, START_S, PATIENCE_S = 2.0, 15.0, 600.0
STEP_DONE = re.compile(r"step +\d+/")  # since this start: the log begins anew with each
TOLERANCE = 1e-4  # of a weight
COMPARED = ("reward", "turn1", "final", "tokens", "loss", "gradient_norm", "kl")


def start(folder: Path, settings: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "srl.main", "rl", f"run.directory={folder}", *SMALL, *settings]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(folder: Path, settings: list[str]) -> Path:
    """Start, or continue to the end; the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    check_ended(start(folder, settings).wait(PATIENCE_S), folder)
    return folder / "tiny"


def check_ended(code: int, folder: Path) -> None:
    if code:
        log = folder / "log"
        raise Failed(f"the run ended with {code}: {last_words(log.read_text())} (whole log: {log})")


def kill_once(folder: Path, settings: list[str], rng: random.Random) -> str:
    """Start and kill; what had been done then, or "" when the run came to its end before. Raises Failed when it failed."""
    process = start(folder, settings)
    begun = time.monotonic()
    moment = begun + START_S * rng.random() if rng.random() < 0.2 else None
    while moment is None or time.monotonic() < moment:
        if process.poll() is not None:
            check_ended(process.returncode, folder)
            return ""
        if time.monotonic() - begun > PATIENCE_S:
            raise TimeoutError(f"{folder}: no step after {PATIENCE_S:g} s")
        if moment is None and STEP_DONE.search((folder / "log").read_text()):
            moment = time.monotonic() + WITHIN_S * rng.random()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saving = any((folder / "tiny" / "resume" / "rl").glob("*.partial"))
    return f"{len(records(folder / 'tiny', 'metrics.jsonl'))} steps recorded" + ", a checkpoint half written" * saving


def disturbed(folder: Path, kills: int, seed: int, settings: list[str]) -> tuple[Path, list[str]]:
    """A run that is killed so often and then continued to its end; what had been done at each kill."""
    folder.mkdir(parents=True)
    rng, done = random.Random(seed), []
    while len(done) < kills and (moment := kill_once(folder, settings, rng)):
        done.append(moment)
        print(f"kill {len(done)}: {moment}", file=sys.stderr, flush=True)
    return finish(folder, settings), done


def records(run: Path, name: str, phase: str = "rl") -> list[dict[str, Any]]:
    """The whole lines of that phase."""
    file = run / name
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [record for line in lines if line.endswith("\n") and (record := json.loads(line))["phase"] == phase]


def trained(run: Path) -> list[int]:
    """Positions of the stream of prompts, as the ledger's file settles them."""
    return [group["position"] for line in records(run, "ledger.jsonl") for group in line["groups"]]


def comparison(alone: Path, killed: Path) -> dict[str, Any]:
    expected, found = (records(run, "metrics.jsonl") for run in (alone, killed))
    weights, others = (load_file(run / "checkpoints" / "rl" / "model.safetensors") for run in (alone, killed))
    gaps = [
        abs(one[name] - other[name]) / (abs(one[name]) + 1e-3)
        for one, other in zip(expected, found, strict=False)
        for name in COMPARED
        if name in one and name in other
    ]
    return {
        "prompts trained once": trained(killed) == trained(alone) == list(range(len(trained(alone)))),
        "steps recorded once": [record["step"] for record in found] == [record["step"] for record in expected],
        "largest difference of a weight": max((weights[name] - others[name]).abs().max().item() for name in weights),
        "largest relative difference of a number": max(gaps),
    }


def equal(result: dict[str, Any]) -> bool:
    once = result["prompts trained once"] and result["steps recorded once"]
    return once and result["largest difference of a weight"] <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=at_least(0), default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("settings", nargs="*", default=["rl.steps=80"])
    options = parser.parse_intermixed_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="srl-rl-resume-"))
    with refusing(parser):
        check_runs([*SMALL, *options.settings], folder)
        alone = finish(folder / "alone", options.settings)
        killed, done = disturbed(folder / "killed", options.kills, options.seed, options.settings)
    result = {"kills": len(done), "done at each": done, **comparison(alone, killed)}
    print(json.dumps(result, indent=1))
    return 0 if equal(result) and len(done) == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
