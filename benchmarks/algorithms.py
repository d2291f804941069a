"""Every algorithm of stage 2 on the same budget of samples, over several seeds: one command, one table.

    python -m benchmarks.algorithms [--seeds 0 1 2] [--only ppo dpo ...] [--dry-run] [section.key=value ...]

Makes a stage-1 model for each seed, starts every method from it or from the base model, evaluates, and prints Markdown: a line
per method (mean over seeds, range in brackets), then each claim with the numbers that decide it. Overrides go to every run. What
is finished is not run again. Exit status 1 if a claim fails.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = {
    "turn1": "turn 1", "final": "final", "delta": "delta", "i2c": "i->c", "c2i": "c->i",
    "verdict_correct": "verdict C", "verdict_wrong": "verdict W",
}  # fmt: skip
STEPS = 24  # of `rl.prompts` problems with `rl.group` samples: the budget of every method


@dataclass(frozen=True)
class Method:
    """A row: recipes one after the other, each from where the last one ended, the first from `start`."""

    title: str
    recipes: tuple[str, ...]
    start: str = "ift"


METHODS = {
    "dpo": Method("IFT + DPO", ("dpo",)),
    "dpo-typed": Method("IFT + DPO, typed pairs", ("dpo-typed",)),
    "ppo": Method("IFT + PPO", ("ppo",)),
    "grpo": Method("IFT + GRPO", ("grpo",)),
    "raft": Method("IFT + RAFT", ("raft",)),
    "plan-1": Method("IFT + GRPO, reward plan 1", ("plan-1",)),
    "spoc": Method("IFT + SPOC", ("spoc",)),
    "pag": Method("PAG from base", ("pag",), "base"),
    "pag-ift": Method("PAG from IFT", ("pag-long-chain",)),
    "score": Method("SCoRe from base", ("score-1", "score-2"), "base"),
    "single-raft": Method("single-turn RAFT", ("single-turn-raft",), "base"),
    "single-dpo": Method("single-turn DPO", ("single-turn-dpo",), "base"),
    "single-ppo": Method("single-turn PPO", ("single-turn-ppo",), "base"),
}


def commands(name: str, seed: int, directory: Path, overrides: list[str]) -> list[list[str]]:
    """Arguments of srl.main for one method and seed, in order."""
    common = [f"run.directory={directory}", f"run.seed={seed}", *overrides]
    if name == "ift":
        return [
            ["stage1", f"run.name=ift-{seed}", *common],
            ["sft", f"run.name=ift-{seed}", *common],
            ["evaluate", f"run.name=ift-{seed}", *common],
        ]
    method, lines = METHODS[name], []
    start = "base" if method.start == "base" else str(directory / f"ift-{seed}" / "checkpoints" / "ift")
    for recipe in method.recipes:
        run = f"{name}-{recipe}-{seed}"
        own = [f"recipe={recipe}", f"run.name={run}", f"rl.start={start}", f"rl.steps={STEPS // len(method.recipes)}"]
        lines.append(["rl", *own, *common])
        start = str(directory / run / "checkpoints" / "rl")
    return [*lines, ["evaluate", "--model", "rl", *lines[-1][1:]]]


def result(name: str, method: str, seed: int, directory: Path) -> dict[str, Any]:
    """The row of results.json, e.g. ("ppo", "rl", 0) or ("ift", "base", 0)."""
    run = f"ift-{seed}" if name == "ift" else f"{name}-{METHODS[name].recipes[-1]}-{seed}"
    rows = json.loads((directory / run / "results.json").read_text())["rows"]
    return next(row for row in rows if row["method"] == method)


def spread(values: list[float | None], form: str = ".1f") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{sum(known) / len(known):{form}} [{min(known):{form}}, {max(known):{form}}]"


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for title, found in rows.items():
        lines.append(f"| {title} | " + " | ".join(spread([row[column] for row in found]) for column in COLUMNS) + " |")
    return "\n".join(lines)


def claims(rows: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[bool, str]]:
    """Claim -> (holds in the mean over seeds, the numbers); only those whose methods were run."""

    def mean(title: str, column: str) -> float:
        values = [row[column] for row in rows[title] if row[column] is not None]
        return sum(values) / len(values) if values else float("nan")

    def gap(first: str, second: str, column: str, least: float) -> tuple[bool, str]:
        values = mean(first, column), mean(second, column)
        return values[0] - values[1] >= least, f"{values[0]:.1f} against {values[1]:.1f}"

    wanted = {
        "PPO's final answer is at least 5 points above IFT's": ("IFT + PPO", "IFT", "final", 5),
        "PPO with self-correction ends above single-turn PPO": ("IFT + PPO", "single-turn PPO", "final", 0),
        "reward plan 1 lowers the first attempt (here by at least 1 point)": ("IFT", "IFT + GRPO, reward plan 1", "turn1", 1),
        "PAG's verdicts on wrong attempts are better than PPO's": ("PAG from IFT", "IFT + PPO", "verdict_wrong", 0),
    }
    return {claim: gap(*asked) for claim, asked in wanted.items() if asked[0] in rows and asked[1] in rows}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithms", description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--directory", type=Path, default=Path("runs/algorithms"), help="where the runs are kept")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    options = parser.parse_intermixed_args(arguments)
    directory = options.directory.absolute()
    for seed in options.seeds:
        for name in ["ift", *options.only]:
            for command in commands(name, seed, directory, options.overrides):
                print("python -m srl.main", *command, flush=True)
                if not options.dry_run:
                    subprocess.run([sys.executable, "-m", "srl.main", *command], check=True)
    if options.dry_run:
        return 0
    rows = {title: [result("ift", title, seed, directory) for seed in options.seeds] for title in ("base", "ift")}
    rows["IFT"] = rows.pop("ift")
    for name in options.only:
        rows[METHODS[name].title] = [result(name, "rl", seed, directory) for seed in options.seeds]
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    held = claims(rows)
    print(
        table(rows), *(f"- {'holds' if ok else 'FAILS'}: {claim}: {numbers}" for claim, (ok, numbers) in held.items()), sep="\n"
    )
    return int(not all(ok for ok, _ in held.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
