"""Several runs side by side, and whether they show what the project claims on the embedded task.

    python -m benchmarks.seeds runs/seed-0 runs/seed-1 runs/seed-2 [picture.png]

Prints Markdown: one line per method with the values of every run, the seconds of every phase, and each claim with the
numbers that decide it. Exit status 1 if a claim fails.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from srl.evaluation.compare import comparison_table, shown
from srl.observe.run_directory import finished

Rows = dict[str, dict[str, Any]]


def load(directory: Path) -> tuple[Rows, dict[str, float]]:
    rows = json.loads((directory / "results.json").read_text())["rows"]
    return {row["method"]: row for row in rows}, json.loads((directory / "state.json").read_text())["phases"]


def phase_table(phases: list[dict[str, float]]) -> str:
    lines = ["| phase | seconds |", "|---|---|"]
    lines += [f"| {name} | " + " / ".join(f"{run[name]:.0f}" for run in phases) + " |" for name in phases[0]]
    lines.append("| all | " + " / ".join(f"{sum(run.values()):.0f}" for run in phases) + " |")
    return "\n".join(lines)


def claims(run: Rows) -> dict[str, tuple[bool, str]]:
    """Claim -> (holds, the numbers)."""
    base, intrinsic, ift, rl = (run[name] for name in ("base", "intrinsic", "ift", "rl"))
    return {
        "base: first attempt right in 45 to 75 %": (45 <= base["turn1"] <= 75, shown(base["turn1"])),
        "base: prompted verdicts right on at least 75 % of correct and of wrong attempts": (
            min(base["verdict_correct"], base["verdict_wrong"]) >= 75,
            f"{shown(base['verdict_correct'])}, {shown(base['verdict_wrong'])}",
        ),
        "intrinsic: final at most turn 1 + 1": (intrinsic["delta"] <= 1, f"{intrinsic['delta']:+.1f}"),
        "ift: delta at least +5": (ift["delta"] >= 5, f"{ift['delta']:+.1f}"),
        "ift: c->i at most 3": (ift["c2i"] <= 3, shown(ift["c2i"])),
        "rl: final at least 3 above ift's": (rl["final"] >= ift["final"] + 3, f"{ift['final']:.1f} -> {rl['final']:.1f}"),
        "intrinsic delta at least 5 below ift's": (
            intrinsic["delta"] <= ift["delta"] - 5,
            f"{intrinsic['delta']:+.1f} against {ift['delta']:+.1f}",
        ),
    }


def validation_curve(directory: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and per cent of one validation metric over RL."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    points = {line["step"]: line[name] for line in lines if line["phase"] == "rl-validation"}
    return list(points), list(points.values())


def picture(directories: list[Path], runs: list[Rows], file: Path) -> None:
    """Left: turn 1 and final of every method, mean over runs. Right: validation accuracy over RL steps, a line per run."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    colours = {"turn1": "#9aa5b1", "final": "#2a68b0"}
    for offset, (name, colour) in enumerate(colours.items()):
        heights = [sum(run[method][name] for run in runs) / len(runs) for method in runs[0]]
        drawn = bars.bar([index + 0.4 * offset for index in range(len(heights))], heights, 0.38, color=colour, label=name)
        bars.bar_label(drawn, fmt="%.0f", fontsize=8)
        for directory in directories:
            curves.plot(*validation_curve(directory, name), color=colour, marker="o", markersize=3, linewidth=1)
    bars.set_xticks([index + 0.2 for index in range(len(runs[0]))], list(runs[0]))
    bars.set(ylabel="right answers, %", ylim=(0, 105), title=f"test, mean of {len(runs)} runs")
    bars.set_ylim(0, 115)  # room for the legend
    bars.legend(loc="upper left", ncols=2, fontsize=8, frameon=False)
    curves.set(xlabel="RL step", title="validation during RL")
    for axes in (bars, curves):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="+", type=Path, metavar="RUN", help="run directory; FILE.png: a picture to draw")
    names = parser.parse_args(arguments).names
    directories = [name for name in names if name.suffix != ".png"]
    if unfinished := [name for name in directories if "evaluate-rl" not in finished(name)]:
        parser.error(f"{unfinished[0]}: no run in it that has done everything (state.json)")
    if not directories:
        parser.error("name at least one run directory")
    runs, phases = zip(*map(load, directories), strict=True)
    for file in (name for name in names if name.suffix == ".png"):
        picture(directories, list(runs), file)
    print(comparison_table([list(run.values()) for run in runs]), phase_table(list(phases)), sep="\n\n", end="\n\n")
    verdicts = [claims(run) for run in runs]
    for claim in verdicts[0]:
        held = [verdict[claim] for verdict in verdicts]
        print(f"- {'holds' if all(ok for ok, _ in held) else 'FAILS'}: {claim}: {'; '.join(numbers for _, numbers in held)}")
    return int(not all(ok for verdict in verdicts for ok, _ in verdict.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
