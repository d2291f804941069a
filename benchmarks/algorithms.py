"""Every algorithm of stage 2 on the same budget of samples, over several seeds: one command, one table.

    python -m benchmarks.algorithms [--seeds 0,1,2] [--only ppo,dpo,...] [--dry-run] [section.key=value ...]

Makes a stage-1 model for each seed, starts every method from it or from the base model, evaluates, and prints Markdown: a line
per method (mean over seeds, range in brackets), then each claim with the numbers that decide it. Overrides go to every run. What
is finished is not run again. Exit status 1 if a claim fails. The runs are those of `python -m srl.main reproduce`: a main run
`seed-S`, and beside it `seed-S-ppo` and so on, so that the paper's tables come from the same models.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.refusal import Failed, check_runs, refusing
from srl.commands.numbers import several
from srl.config import Config, load_config
from srl.driver.reproduce import variant_overrides
from srl.driver.run import COMMANDS
from srl.evaluation.paper import VARIANTS, Variant
from srl.observe.run_directory import RunDirectory

CONFIG = "tiny.yaml"  # that of the commands
COLUMNS = {
    "turn1": "turn 1", "final": "final", "delta": "delta", "i2c": "i->c", "c2i": "c->i",
    "verdict_correct": "verdict C", "verdict_wrong": "verdict W",
}  # fmt: skip
STEPS = 12  # of `rl.prompts` problems with `rl.group` samples: the budget of every method
# Half of the usual problems for stage 1: after all of them the final answer is right 90 times in 100, and no method has room.
SETTINGS = [
    "stage1.prompts=150", f"rl.steps={STEPS}", "rl.prompts=32", "rl.evaluate_every=6",
    "evaluate.problems=500", "evaluate.validation_problems=100",
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A row: variants of the main run, one after the other, each from where the last one ended; none: the main run itself."""

    title: str
    variants: tuple[str, ...] = ()


METHODS = {
    "grpo": Method("IFT + GRPO"),
    "ppo": Method("IFT + PPO", ("ppo",)),
    "single-turn-ppo": Method("single-turn PPO", ("single-turn-ppo",)),
    "plan-1": Method("IFT + GRPO, reward plan 1", ("plan-1",)),
    "pag-ift": Method("PAG from IFT", ("pag-ift",)),
    "dpo": Method("IFT + DPO", ("dpo",)),
    "pag": Method("PAG from base", ("pag",)),
    "single-turn-raft": Method("single-turn RAFT", ("single-turn-raft",)),
    "single-turn-dpo": Method("single-turn DPO", ("single-turn-dpo",)),
    "score": Method("SCoRe from base", ("score-1", "score-2")),
    "spoc": Method("IFT + SPOC", ("spoc",)),
    "online-raft": Method("IFT + RAFT", ("online-raft",)),
    "dpo-typed": Method("IFT + DPO, typed pairs", ("dpo-typed",)),
}
HALF = (f"rl.steps={STEPS // 2}",)
# With those of the paper's tables.
ALL_VARIANTS = VARIANTS | {
    "plan-1": Variant((), ("rl",), start=True, recipe="plan-1"),
    "pag-ift": Variant((), ("rl",), start=True, recipe="pag-long-chain"),
    "pag": Variant((), ("rl",), recipe="pag"),
    "score-1": Variant(HALF, ("rl",), recipe="score-1"),
    "score-2": Variant(HALF, ("rl",), recipe="score-2"),
    "spoc": Variant((), ("rl",), start=True, recipe="spoc"),
    "online-raft": Variant((), ("rl",), start=True, recipe="raft"),
    "dpo-typed": Variant((), ("rl",), start=True, recipe="dpo-typed"),
}


def commands(name: str, seed: int, directory: Path, overrides: list[str]) -> list[list[str]]:
    """Arguments of srl.main for one method and seed, in order. The main run makes IFT's model and trains GRPO, the default."""
    common = [f"run.directory={directory}", f"name=seed-{seed}", f"seed={seed}", *SETTINGS, *overrides]
    lines, start = [["run", *common]], []
    for variant in METHODS[name].variants:
        own = variant_overrides(variant, lambda more: load_config(CONFIG, [*common, *more]), ALL_VARIANTS)
        lines.append(["rl", *common, *own, *start])
        start = [f"rl.start={directory / f'seed-{seed}-{variant}' / 'checkpoints' / 'rl'}"]
    return [*lines, ["evaluate", "--model", "rl", *lines[-1][1:]]] if start else lines


def finished(command: list[str]) -> bool:
    """Whether the run has done that. Raises ConfigError for a run of other settings."""
    config = settings(command)
    path = RunDirectory.locate(config)
    if not path.exists():
        return False
    run = RunDirectory(config)
    if command[0] == "evaluate":
        return any(row["method"] == "rl" for row in run.rows())
    return set(COMMANDS[command[0]]) <= set(run.done())


def settings(command: list[str]) -> Config:
    return load_config(CONFIG, [word for word in command if "=" in word])


def result(method: str, command: list[str]) -> dict[str, Any]:
    """The row of results.json that the command's run has for `base`, `ift` or `rl`."""
    rows = json.loads((RunDirectory.locate(settings(command)) / "results.json").read_text())["rows"]
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
        "and more than the outcome reward does": ("IFT + GRPO", "IFT + GRPO, reward plan 1", "turn1", 1),
        "PAG's verdicts on wrong attempts are better than PPO's": ("PAG from IFT", "IFT + PPO", "verdict_wrong", 0),
    }
    return {claim: gap(*asked) for claim, asked in wanted.items() if asked[0] in rows and asked[1] in rows}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithms", description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--seeds", type=several(int), default=[0, 1, 2])
    parser.add_argument("--only", type=several(str, METHODS), metavar="METHOD,...", default=list(METHODS))
    parser.add_argument("--directory", type=Path, default=Path("runs/algorithms"), help="where the runs are kept")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    options = parser.parse_intermixed_args(arguments)
    with refusing(parser):
        check_runs(options.overrides)
        return compare(options)


def compare(options: argparse.Namespace) -> int:
    directory = options.directory.absolute()
    rows: dict[str, list[dict[str, Any]]] = {"base": [], "IFT": []}
    for name in options.only:
        for seed in options.seeds:
            wanted = commands(name, seed, directory, options.overrides)
            perform(wanted, options.dry_run)
            if not options.dry_run:
                rows.setdefault(METHODS[name].title, []).append(result("rl", wanted[-1]))
                if name == options.only[0]:
                    rows["base"].append(result("base", wanted[0]))
                    rows["IFT"].append(result("ift", wanted[0]))
    if options.dry_run:
        return 0
    if options.output:
        kept = {title: [{key: row[key] for key in row if key != "model"} for row in found] for title, found in rows.items()}
        options.output.write_text(json.dumps(kept, indent=1) + "\n")  # where the models lie is of this machine
    held = claims(rows)
    print(
        table(rows), *(f"- {'holds' if ok else 'FAILS'}: {claim}: {numbers}" for claim, (ok, numbers) in held.items()), sep="\n"
    )
    return int(not all(ok for ok, _ in held.values()))


def perform(wanted: list[list[str]], only_print: bool) -> None:
    """Those of the commands whose runs have not done them yet, each in a process of its own. Raises Failed when one fails."""
    for command in wanted:
        if only_print or not finished(command):
            print("python -m srl.main", *command, flush=True)
        if only_print or finished(command):
            continue
        if code := subprocess.run([sys.executable, "-m", "srl.main", *command]).returncode:
            raise Failed(f"the last command ended with {code}; what it said stands above")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
