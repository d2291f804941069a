"""Stage-1 sampling against the way of the authors' scripts and against the engine alone, side by side.

    python -m benchmarks.stage1 [--rounds 1] [--folder DIR] [section.key=value ...]

`pipeline`  srl's: one Ray Data pipeline, one engine per actor for all steps, samples written block by block
`scripts`   the authors' way: one process per step, which starts the engine anew, reads a file and writes one; grading in process
`engine`    the requests that the pipeline made, handed to one engine at once: its own time for the same tokens

Each runs in a process of its own, in turns, on the same model and problems. Prints JSON with two parts:

same requests  all three sample the same tokens: what is left is how they go about it
early stop     the paper's N1, N2, M1, M2, of which the pipeline samples only until a problem's quotas are full
               (stage1.wave); the scripts cannot know that and sample everything

`accepted` are attempts that D1, D2 or D3 could take, at most stage1.per_prompt_and_class right and as many wrong ones of a
problem. Rates with and without starting (imports, engine, Ray); `cpu` ratios compare processor seconds of the generating
process, which other programs on the machine disturb less than the clock.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.refusal import Failed, check_runs, last_words, refusing
from srl.commands.numbers import at_least
from srl.config import Config, load_config
from srl.pipelines.classes import candidates
from srl.pipelines.sample import SamplingPass, sample
from srl.pipelines.samples import Row, fingerprint, problems_in, sample_files
from srl.pipelines.tree import Sampler, continued
from srl.protocols.chat import Chat, model_folder
from srl.protocols.protocol import build_protocol
from srl.reward.grader import Grader
from srl.rollout.engine import Completion, Engine, Sampling
from srl.rollout.loop import Limits, run_trajectories
from srl.tasks.problems import Problem, chain_problems
from srl.trajectory import Outcome, Trajectory, TurnKind, from_record, to_record

# One engine, as a script of one step has.
SMALL = ["stage1.prompts=200", "stage1.block=25", "rollout.workers=1", "rollout.threads=1", "run.object_store_mib=100"]
PAPER = ["stage1.attempts=50", "stage1.verdicts=8", "stage1.wrong_revisions=8", "stage1.correct_revisions=4"]
PARTS = {"same requests": ["stage1.wave=4"], "early stop": ["stage1.prompts=24", "stage1.block=6", *PAPER]}
STEPS = ("attempt", "verdict", "revision")


def problems_of(config: Config) -> list[Problem]:
    task = config.task
    return chain_problems("train", config.stage1.prompts, task.seed, task.min_operations, task.max_operations)


# --- pipeline


def pipeline(config: Config, folder: Path) -> dict[str, Any]:
    from srl.driver.cluster import connect
    from srl.reward.actor import create_reward_actors

    connect(config)
    work = SamplingPass(folder / "samples", model_folder(config.model.path))
    blocks = sample(config, problems_of(config), create_reward_actors(config.reward), work, lambda count: None)
    return {
        "generating_s": max(block.ended for block in blocks) - min(block.started for block in blocks),
        "cpu_s": max(block.cpu_ended for block in blocks) - min(block.cpu_started for block in blocks),
        "tokens": sum(block.tokens for block in blocks),
        "accepted": sum(
            accepted(rows, config.stage1.per_prompt_and_class)
            for file in sample_files(folder / "samples")
            for rows in problems_in(file, COLUMNS)
        ),
    }


COLUMNS = ["id", "prompt_id", "kind", "parent", "outcome", "verdict", "accepted", "truncated"]


def accepted(rows: Sequence[Row], cap: int) -> int:
    """Attempts of one problem that could become demonstrations, at most `cap` right and `cap` wrong ones."""
    children: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        children[row["parent"]].append(row)
    sides = Counter(attempt["outcome"] for attempt in children[""] if candidates(attempt, children)[0])
    return sum(min(count, cap) for count in sides.values())


# --- the authors' way: one process per step, files between


def script(config: Config, step: str, folder: Path) -> dict[str, Any]:
    """Read what the step before wrote, generate, grade, write."""
    path = model_folder(config.model.path)
    chat = Chat(path, config.prompts)
    todo = script_input(config, chat, step, folder)
    engine = Engine(path, config.model, config.rollout, chat.stop_ids)
    started, used = time.time(), time.process_time()
    protocol = build_protocol(step, config, chat)
    limits = Limits(config.model.max_length, max_active=config.rollout.max_sequences)
    done = run_trajectories(engine, protocol, chat, todo, temperature=config.stage1.temperature, limits=limits, timeout_s=3600)
    if step != "verdict":
        grader = Grader(config.reward)
        grades = grader.grade([(trajectory.turns[-1].answer, trajectory.gold) for trajectory in done])
        grader.close()
        for trajectory, grade in zip(done, grades, strict=True):
            trajectory.turns[-1].outcome = grade.outcome
    (folder / f"{step}.jsonl").write_text("".join(json.dumps(to_record(trajectory)) + "\n" for trajectory in done))
    tokens = sum(len(trajectory.turns[-1].token_ids) for trajectory in done)
    return {"generating_s": time.time() - started, "cpu_s": time.process_time() - used, "tokens": tokens}


def script_input(config: Config, chat: Chat, step: str, folder: Path) -> list[Trajectory]:
    stage1 = config.stage1
    if step == "attempt":
        return [
            Trajectory(f"{p.prompt_id}/a{n}", p.prompt_id, p.question, p.gold, chat.opening(p.question), seed=config.run.seed)
            for p in problems_of(config)
            for n in range(stage1.attempts)
        ]
    before = read(folder / f"{STEPS[STEPS.index(step) - 1]}.jsonl")
    if step == "verdict":
        return [continued(attempt, f"v{n}") for attempt in before for n in range(stage1.verdicts)]
    sampler = Sampler(config, chat, None, None, "")
    by_attempt: dict[str, list[Trajectory]] = defaultdict(list)
    for verdict in before:
        by_attempt[verdict.id.rpartition("/")[0]].append(verdict)
    return [revision for verdicts in by_attempt.values() for revision in sampler._to_revise(verdicts)]


def read(file: Path) -> list[Trajectory]:
    return [from_record(json.loads(line)) for line in file.read_text().splitlines()]


def accepted_by_scripts(folder: Path, cap: int) -> int:
    """As `accepted` counts, from the files of the scripts."""
    attempts = {t.id: t for t in read(folder / "attempt.jsonl")}
    right = {name: t.turns[-1].outcome is Outcome.CORRECT for name, t in attempts.items()}
    found = set()
    for verdict in read(folder / "verdict.jsonl"):
        attempt = verdict.id.rpartition("/")[0]
        if verdict.turns[-1].verdict == "correct" and right[attempt]:
            found.add(attempt)
    for revision in read(folder / "revision.jsonl"):
        if revision.turns[-1].outcome is Outcome.CORRECT:
            found.add("/".join(revision.id.split("/")[:2]))
    sides = Counter((attempts[name].prompt_id, right[name]) for name in found)
    return sum(min(count, cap) for count in sides.values())


# --- the engine alone


def engine_alone(config: Config, folder: Path) -> dict[str, Any]:
    """All requests of the pipeline at once."""
    path = model_folder(config.model.path)
    chat = Chat(path, config.prompts)
    requests = recorded_requests(config, chat, folder / "samples")
    engine = Engine(path, config.model, config.rollout, chat.stop_ids)
    started, used, tokens, running = time.time(), time.process_time(), 0, len(requests)
    for name, (ids, sampling) in requests.items():
        engine.submit(name, ids, sampling)
    while running:
        for done in engine.step():
            running -= 1
            tokens += len(done.token_ids)
    return {"generating_s": time.time() - started, "cpu_s": time.process_time() - used, "tokens": tokens}


def recorded_requests(config: Config, chat: Chat, folder: Path) -> dict[str, tuple[list[int], Sampling]]:
    """What the pipeline asked its engine, step by step, found by growing its trees again from the rows."""
    rows = {
        row["id"]: row for file in sample_files(folder) for tree in problems_in(file, [*COLUMNS, "token_ids"]) for row in tree
    }
    asked: dict[str, tuple[list[int], Sampling]] = {}

    async def generate(name: str, ids: list[int], sampling: Sampling) -> Completion:
        asked[name] = ids, sampling
        found = rows[name]["token_ids"]
        return Completion(name, found, [0.0] * len(found), rows[name]["truncated"])

    async def graded(request: tuple) -> Outcome:
        return Outcome(rows[request[0]]["outcome"])

    async def grow() -> None:
        sampler = Sampler(config, chat, generate, graded, fingerprint(model_folder(config.model.path)))
        for problem in problems_of(config):
            await sampler.problem(problem)

    asyncio.run(grow())
    order = {TurnKind.ATTEMPT: 0, TurnKind.VERDICT: 1, TurnKind.REVISION: 2}
    return dict(sorted(asked.items(), key=lambda item: order[TurnKind(rows[item[0]]["kind"])]))


# --- side by side


def timed(role: str, folder: Path, settings: list[str]) -> dict[str, Any]:
    """One role in a process of its own; its numbers and the seconds of the whole process."""
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.stage1", "--role", role, "--folder", str(folder), *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        raise Failed(f"{role} failed: {last_words(done.stderr)}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.time() - started}


def one_round(folder: Path, settings: list[str], with_engine: bool) -> dict[str, dict[str, float]]:
    ours = timed("pipeline", folder, settings)
    steps = [timed(step, folder, settings) for step in STEPS]
    scripts = {key: sum(step[key] for step in steps) for key in ("generating_s", "cpu_s", "process_s", "tokens")}
    cap = load_config("tiny.yaml", [*SMALL, *settings]).stage1.per_prompt_and_class
    found = {"pipeline": ours, "scripts": {**scripts, "accepted": accepted_by_scripts(folder, cap)}}
    return {**found, "engine": timed("engine", folder, settings)} if with_engine else found


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    ours, theirs = found["pipeline"], found["scripts"]

    def rate(seconds: str) -> float:
        return ours["accepted"] / ours[seconds] / (theirs["accepted"] / theirs[seconds])

    compared = {
        "accepted per second, pipeline": ours["accepted"] / ours["process_s"],
        "accepted per second, scripts": theirs["accepted"] / theirs["process_s"],
        "accepted, pipeline over scripts": ours["accepted"] / theirs["accepted"],
        "tokens, pipeline over scripts": ours["tokens"] / theirs["tokens"],
        "pipeline over scripts": rate("process_s"),
        "pipeline over scripts without starting": rate("generating_s"),
        "pipeline over scripts, per cpu second": rate("cpu_s"),
    }
    if engine := found.get("engine"):
        compared["pipeline time over engine time"] = ours["generating_s"] / engine["generating_s"]
        compared["pipeline cpu over engine cpu"] = ours["cpu_s"] / engine["cpu_s"]
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=at_least(1), default=1)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--role", choices=["pipeline", "engine", *STEPS], help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    if options.role:
        config = load_config("tiny.yaml", [*SMALL, *options.settings])
        roles = {"pipeline": pipeline, "engine": engine_alone}
        run = roles.get(options.role) or (lambda config, folder: script(config, options.role, folder))
        print(json.dumps(run(config, options.folder)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="srl-stage1-"))
    with refusing(parser):
        check_runs([*SMALL, *options.settings], folder)
        print(json.dumps(measured(folder, options.rounds, options.settings), indent=1))


def measured(folder: Path, count: int, settings: list[str]) -> dict[str, Any]:
    report = {}
    for part, own in PARTS.items():
        rounds = []
        for number in range(count):
            (place := folder / f"{part.replace(' ', '-')}-{number}").mkdir(parents=True)
            rounds.append(one_round(place, [*own, *settings], with_engine=part == "same requests"))
            print(part, json.dumps(ratios(rounds[-1])), file=sys.stderr, flush=True)
        each = [ratios(found) for found in rounds]
        report[part] = {"median": {name: round(median(one[name] for one in each), 3) for name in each[0]}, "rounds": rounds}
    return report


if __name__ == "__main__":
    main()
