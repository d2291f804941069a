"""Kills sampling at random moments and compares what is there in the end with an undisturbed run.

    python -m benchmarks.exactly_once [--kills 5] [--seed 0] [--folder DIR] [section.key=value ...]

Prints JSON: the kills (which process, after how many blocks), how many samples there are, how often an id occurs twice, and
whether the rows, by id, are those of the undisturbed run. Exit status 1 if they are not, or if the run ended before all kills.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.processes import by_role
from benchmarks.refusal import Failed, check_runs, last_words, refusing
from srl.commands.numbers import at_least

ROOT = Path(__file__).parents[1]
SMALL = ["stage1.prompts=48", "stage1.block=4", "stage1.attempts=3", "rollout.max_sequences=8", "run.object_store_mib=100"]
SMALL += ["rollout.workers=1", "reward.deadline_s=60"]  # a busy machine is no reason to fail
COMPARED = ["id", "parent", "token_ids", "outcome", "verdict", "accepted", "truncated", "seed", "weights"]
PATIENCE_S = 600.0


def start(folder: Path, settings: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "srl.main", "stage1", f"run.directory={folder}", *SMALL, "rollout.retries=20", *settings]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def blocks(folder: Path) -> int:
    return len(list(folder.glob("tiny/stage1/samples/*.parquet")))


def engines(driver: int) -> list[int]:
    """Pids of the sampling actors below the driver."""
    return [process.pid for process in by_role(driver).get("sampling", [])]


def kill_once(process: subprocess.Popen, who: str, after: int, folder: Path, rng: random.Random) -> bool:
    """Kill the driver or an engine a moment after that many blocks are there; False when the run ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while blocks(folder) < after or not engines(process.pid):
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder}: {blocks(folder)} of {after} blocks after {PATIENCE_S:g} s")
        time.sleep(0.05)
    time.sleep(0.3 * rng.random())
    victims = [process.pid] if who == "driver" else engines(process.pid)
    if not victims or process.poll() is not None:
        return False
    os.kill(victims[0], signal.SIGKILL)
    return True


def disturbed(folder: Path, victims: list[str], seed: int, settings: list[str]) -> list[str]:
    """A run in which these are killed one after the other; returns what was done."""
    folder.mkdir(parents=True)
    rng, done = random.Random(seed), []
    process = start(folder, settings)
    for who in victims:
        after = blocks(folder) + rng.randrange(3)
        if not kill_once(process, who, after, folder, rng):
            break
        done.append(f"{who} after {blocks(folder)} blocks")
        if who == "driver":
            process.wait(PATIENCE_S)
            process = start(folder, settings)
    code = process.wait(PATIENCE_S)
    if code:
        raise ended(code, folder)
    return done


def undisturbed(folder: Path, settings: list[str]) -> None:
    folder.mkdir(parents=True)
    if code := start(folder, settings).wait(PATIENCE_S):
        raise ended(code, folder)


def ended(code: int, folder: Path) -> Failed:
    log = folder.with_name(f"{folder.name}.log")
    return Failed(f"the run ended with {code}: {last_words(log.read_text())} (whole log: {log})")


def rows(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("tiny/stage1/samples/*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=COMPARED).to_pylist()]


def comparison(first: Path, second: Path) -> dict[str, Any]:
    expected, found = rows(first), rows(second)
    by_id, again = {row["id"]: row for row in expected}, {row["id"]: row for row in found}
    return {
        "samples": len(found),
        "samples expected": len(expected),
        "ids twice": len(found) - len(again),
        "ids missing or extra": len(by_id.keys() ^ again.keys()),
        "rows that differ": sum(by_id[name] != again[name] for name in by_id.keys() & again.keys()),
        "demonstrations equal": demonstrations(first) == demonstrations(second),
        "files left over": [path.name for path in second.glob("tiny/stage1/samples/.*")],
    }


def demonstrations(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "tiny/stage1/demonstrations.parquet").to_pylist()


def equal(result: dict[str, Any]) -> bool:
    return result["demonstrations equal"] and not any(
        result[name] for name in ("ids twice", "ids missing or extra", "rows that differ", "files left over")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=at_least(0), default=5, help="of the driver, and as many of the engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="srl-exactly-once-"))
    victims = ["driver", "engine"] * options.kills
    random.Random(options.seed).shuffle(victims)
    with refusing(parser):
        check_runs([*SMALL, *options.settings], folder)
        undisturbed(folder / "undisturbed", options.settings)
        done = disturbed(folder / "disturbed", victims, options.seed, options.settings)
    result = {"kills": done, **comparison(folder / "undisturbed", folder / "disturbed")}
    print(json.dumps(result, indent=1))
    return 0 if equal(result) and len(done) == len(victims) else 1


if __name__ == "__main__":
    sys.exit(main())
