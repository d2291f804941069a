"""What a run does now, read from its directory alone: works on any machine that sees the files."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srl.config import ConfigError
from srl.observe.health import gibibytes
from srl.observe.progress import duration
from srl.observe.run_directory import finished, is_record, read_json

# Recorded numbers worth a line, in this order; each phase has some of them.
SHOWN = ("loss", "reward", "turn1", "final", "kl", "entropy", "policy_age", "tokens_per_second", "seconds", "validation_loss")
# What the watchdog writes into status.json.
WRITTEN = {"written", "interval_s", "host", "pid", "ended", "phase", "step", "moved_s", "actors", "alarms"}
TAIL_BYTES = 65536
EVALUATED = "evaluated"  # the phase after models were evaluated from the command line: nothing is left to do


def format_status(path: Path, now: float) -> str:
    """Several lines: phase and step, what is done, the latest measurement, each actor, alarms; ages in seconds before `now`.
    Raises ConfigError for a damaged status.json or state.json."""
    state, done = read_json(path / "status.json"), finished(path)
    if state is not None and not state.keys() >= WRITTEN:
        raise ConfigError(f"{path / 'status.json'}: not what a run writes; delete it and a run that is alive makes it again")
    lines = [headline(path, state, done, now)]
    if done:
        lines.append("done: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done.items()))
    if latest := last_record(path / "metrics.jsonl"):
        shown = ", ".join(f"{name} {latest[name]:.4g}" for name in SHOWN if isinstance(latest.get(name), int | float))
        lines.append(f"latest: {latest['phase']} step {latest['step']}: {shown}")
    if state:
        age = None if state["ended"] else now - state["written"]
        lines += ["", *actor_table(state["actors"], age)]
        lines += [f"alarm: {line}" for line in state["alarms"]]
    return "\n".join(lines)


def headline(path: Path, state: dict[str, Any] | None, done: Mapping[str, float], now: float) -> str:
    if state is None:
        return f"{path}: has not started its actors yet"
    where = f"pid {state['pid']} on {state['host']}"
    if state["ended"] and (state["phase"] == EVALUATED or (done and state["phase"] in (*done, "start"))):
        return f"{path}: finished what was asked for {ago(now - state['written'])} ({where})"
    if state["ended"]:
        return f"{path}: not running; ended {ago(now - state['written'])} in phase {state['phase']} ({where})"
    if now - state["written"] > 10 * state["interval_s"] + 30:
        return (
            f"{path}: not running or out of reach; last heard {ago(now - state['written'])} in phase {state['phase']} ({where})"
        )
    moved = ago(now - state["written"] + state["moved_s"])
    return f"{path}: phase {state['phase']}, step {state['step']}, moved {moved} ({where})"


def actor_table(actors: list[dict[str, Any]], age: float | None) -> list[str]:
    """What was written `age` seconds ago of each actor; None of a run that has ended: then only what its actors counted."""
    rows = [("actor", "node", "pid", "starts", "heard", "resident", "doing", "counts")]
    if age is None:
        rows = [("actor", "counts")]
    for actor in actors:
        who = f"{actor['role']} {actor['rank']}"
        counts = " ".join(f"{name}={value:,.10g}" for name, value in {**actor["counts"], **actor["levels"]}.items())
        if age is None:
            rows.append((who, counts))
            continue
        rows.append(
            (
                who,
                actor["node"],
                str(actor["pid"]),
                str(actor["starts"]),
                ago(age + actor["heard_s"]),
                gibibytes(actor["resident"]),
                actor["doing"] if actor["doing"] == "idle" else f"{actor['doing']} for {duration(age + actor['since_s'])}",
                counts,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def last_record(file: Path) -> dict[str, Any] | None:
    """The last whole measurement of metrics.jsonl, without reading all of it."""
    if not file.exists():
        return None
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = handle.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # half a line: being written, or cut by the seek
            continue
        if is_record(record) and record["phase"] not in ("phase", "alarm"):
            return record
    return None


def ago(seconds: float) -> str:
    return f"{duration(seconds)} ago"


def running_status(path: Path) -> str:
    return format_status(path, time.time())
