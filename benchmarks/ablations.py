"""Fine-tuning sets made of the same samples, at one size: the mixes of the paper's Table 8, or its baselines without verdicts.

    python -m benchmarks.ablations mixes     [--seeds 0,1,2] [--size 1000] [--folder runs/ablations] [section.key=value ...]
    python -m benchmarks.ablations baselines [...]

For each seed one run samples; then each set is assembled from those samples, trained and evaluated in a run of its own. What is
done is not done again, so a stopped command continues. Prints Markdown: every set with the values of all seeds and their
mean, and whether the directions that the paper found are there; writes the rows to FOLDER/<what>/results.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.refusal import check_runs, refusing
from srl.commands.numbers import at_least, several
from srl.config import Config, load_config
from srl.pipelines.assemble import COLUMNS, choose, counts_to_keep
from srl.pipelines.classes import CLASSES
from srl.pipelines.samples import problems_in, sample_files

C2C, NO_C2C = "stage1.c2c_share=0.2", "stage1.c2c_share=0"
BALANCED, MORE_WRONG, MORE_CORRECT = (f"stage1.correct_share={share}" for share in (0.5, 0.33, 0.67))
SETS = {
    "mixes": {
        "balanced": [BALANCED, NO_C2C],
        "balanced, c2c": [BALANCED, C2C],
        "more wrong": [MORE_WRONG, NO_C2C],
        "more wrong, c2c": [MORE_WRONG, C2C],
        "more correct": [MORE_CORRECT, NO_C2C],
        "more correct, c2c": [MORE_CORRECT, C2C],
    },
    "baselines": {"raft": ["stage1.recipe=raft"], "raft_plus": ["stage1.recipe=raft_plus", C2C], "ift": [BALANCED, C2C]},
}
SHOWN = ["turn1", "final", "delta", "i2c", "c2i", "verdict_correct", "verdict_wrong", "format_failures"]


def must(command: list[str], log: Path) -> None:
    """Run one command line, its output appended to `log`."""
    with log.open("a") as file:
        code = subprocess.run([sys.executable, "-m", "srl.main", *command], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"srl {' '.join(command)} ended with {code}: see {log}")


def available(samples: Path, settings: list[str]) -> dict[str, set[str]]:
    """The attempts that can give each class from these samples under these settings."""
    config = load_config("tiny.yaml", settings)
    found: dict[str, set[str]] = {name: set() for name in CLASSES}
    for file in sample_files(samples):
        for rows in problems_in(file, COLUMNS):
            for name, path in choose(rows, config.stage1, config.run.seed, config.protocol.grammar)[0]:
                found[name].add(path[0]["id"])
    return found


def common_size(samples: Path, sets: dict[str, list[str]], settings: list[str]) -> int:
    """What every set can reach."""
    sizes = {}
    for name, own in sets.items():
        config: Config = load_config("tiny.yaml", [*settings, *own])
        sizes[name] = sum(counts_to_keep(available(samples, [*settings, *own]), config.stage1).values())
    print("demonstrations that each set could have: " + ", ".join(f"{name} {size}" for name, size in sizes.items()), flush=True)
    return min(sizes.values())


def one_seed(what: str, seed: int, folder: Path, most: int, settings: list[str]) -> list[dict[str, Any]]:
    """Rows of results.json of every set, with its name, seed and classes."""
    own = [f"run.directory={folder}", f"seed={seed}", *settings]
    log = folder / f"seed-{seed}.log"
    must(["stage1", f"name=seed-{seed}", "stage1.wave=1000", *own], log)
    samples = folder / f"seed-{seed}" / "stage1" / "samples"
    size = min(most, common_size(samples, SETS[what], own))
    rows = []
    for name, changes in SETS[what].items():
        title = f"{what}-{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}"
        line = [f"name={title}", f"stage1.samples={samples}", f"stage1.size={size}", *changes, *own]
        for command in ("stage1", "sft"):
            must([command, *line], log)
        protocol = load_config("tiny.yaml", line).own_protocol
        # Every right attempt is said to be wrong: c2i over turn1 is then p(c->i). Without verdicts there is nothing to replace.
        misleading = "" if name.startswith("raft") else f"misleading_{protocol.removeprefix('long_')}"
        asked = [f"--protocol={one}" for one in (protocol, misleading) if one]
        must(["evaluate", "--model", "ift", *asked, *line], log)
        found = {"set": name, "seed": seed, "size": size, **row_of(folder / title, protocol)}
        if misleading:
            misled = row_of(folder / title, misleading)
            found["p_c2i"] = round(100 * misled["c2i"] / misled["turn1"], 2) if misled["turn1"] else None
        rows.append(found | {"classes": json.loads((folder / title / "stage1" / "card.json").read_text())["classes"]})
        print(f"seed {seed}, {name}: turn 1 {found['turn1']} -> {found['final']}", flush=True)
    return rows


def row_of(run: Path, protocol: str) -> dict[str, Any]:
    return [row for row in json.loads((run / "results.json").read_text())["rows"] if row.get("protocol") == protocol][-1]


def table(rows: list[dict[str, Any]]) -> str:
    columns = [*SHOWN, *(["p_c2i"] if any(row.get("p_c2i") is not None for row in rows) else [])]
    lines = ["| set | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        cells = [cell([row.get(column) for row in own]) for column in columns]
        lines.append(f"| {name} | {' / '.join(str(row['size']) for row in own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f} ({' / '.join('-' if value is None else f'{value:.1f}' for value in values)})"


def average(rows: list[dict[str, Any]], names: list[str], column: str) -> float | None:
    values = [row.get(column) for row in rows if row["set"] in names]
    return mean(values) if values and None not in values else None


def directions(what: str, rows: list[dict[str, Any]]) -> list[str]:
    """The paper's findings, each with the two means that decide it."""
    if what == "mixes":
        correct, wrong = ([f"more {side}", f"more {side}, c2c"] for side in ("correct", "wrong"))
        with_c2c = [name for name in SETS[what] if name.endswith("c2c")]
        pairs = [
            ("more correct-first data: verdicts on correct attempts more often right", correct, wrong, "verdict_correct"),
            ("more correct-first data: verdicts on wrong attempts less often right", wrong, correct, "verdict_wrong"),
            ("c2c lowers p(c->i)", [name for name in SETS[what] if name not in with_c2c], with_c2c, "p_c2i"),
        ]
    else:
        pairs = [(f"ift gains more by correcting itself than {name}", ["ift"], [name], "delta") for name in ("raft", "raft_plus")]
        pairs.append(("c2c data lowers c->i without verdicts", ["raft"], ["raft_plus"], "c2i"))
    lines = []
    for claim, higher, lower, column in pairs:
        first, second = average(rows, higher, column), average(rows, lower, column)
        if first is None or second is None:
            lines.append(f"- not measured: {claim}")
        else:
            lines.append(f"- {'holds' if first > second else 'FAILS'}: {claim}: {column} {first:.1f} against {second:.1f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(SETS))
    parser.add_argument("--seeds", type=several(int), default=[0, 1, 2])
    parser.add_argument("--size", type=at_least(1), default=1000, help="most demonstrations of a set (default 1000)")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"))
    parser.add_argument("settings", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    folder = options.folder.absolute()
    with refusing(parser):
        check_runs(options.settings, folder)
    (folder / options.what).mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        rows += one_seed(options.what, seed, folder, options.size, options.settings)
        (folder / options.what / "results.json").write_text(json.dumps({"schema": 1, "rows": rows}, indent=1))
    print("", table(rows), "", *directions(options.what, rows), sep="\n")


if __name__ == "__main__":
    main()
