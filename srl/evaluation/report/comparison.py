"""compare.html: several runs on one page."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from srl.config import read_settings
from srl.evaluation.compare import align, paired_tests, run_names, spread
from srl.evaluation.report.files import RunFiles, read_run, series
from srl.evaluation.report.markup import escape, interval, missing, number, table
from srl.evaluation.report.page import document, write_page
from srl.evaluation.report.plots import BLUE, GOLD, GREEN, GREY, RED, VIOLET, dumbbell_plot, line_plot
from srl.evaluation.report.results import MOST_DUMBBELLS, first_of

COLOURS = (BLUE, GREEN, RED, GOLD, VIOLET, GREY)
CURVES = {
    ("rl-validation", "final"): "validation: final answers right, %",
    ("rl-validation", "turn1"): "validation: first attempts right, %",
    ("rl-validation", "verdict_wrong"): "validation: wrong answers called wrong, %",
    ("rl", "reward"): "reward, mean per trajectory",
    ("rl", "kl"): "KL to the reference, nats per token",
    ("rl", "tokens_per_second"): "sampled tokens per second",
}
COLUMNS = {"turn1": "turn&nbsp;1", "final": "final", "delta": "Δ", "i2c": "i→c", "c2i": "c→i", "verdict_correct": "verdict C"}
COLUMNS |= {"verdict_wrong": "verdict W"}


def write_comparison(directories: list[Path], target: Path) -> Path:
    """Raises ConfigError for a results.json that is not JSON, a config.yaml that holds no settings."""
    names = run_names(directories)
    runs = [replace(read_run(directory), called=name) for directory, name in zip(directories, names, strict=True)]
    return write_page(target, comparison(runs))


def comparison(runs: list[RunFiles]) -> str:
    names = ", ".join(run.name for run in runs)
    aligned = align([run.rows for run in runs])
    sections = {
        "Results": results(runs, aligned),
        "Differences": differences(runs, aligned),
        "Over RL steps": curves(runs),
        "Seconds per phase": seconds(runs),
        "Settings that differ": settings(runs),
    }
    return document(names, f'<h1>Comparison</h1>\n<p class="headline">{escape(names)}</p>\n', sections)


def results(runs: list[RunFiles], aligned: dict[tuple[str, str], list[dict[str, Any] | None]]) -> str:
    if not aligned:
        return missing("No run has rows in results.json.")
    body, pairs = [], []
    for (method, benchmark), rows in aligned.items():
        for run, row in zip(runs, rows, strict=True):
            if row is None:
                continue
            name = f"{escape(method)} <small>{escape(benchmark)} · {escape(run.name)}</small>"
            body.append([name, *(cell(row, column) for column in COLUMNS)])
            pairs.append((f"{method} · {run.name}", row["turn1"], row["final"], (row.get("ci95") or {}).get("final")))
        if sum(row is not None for row in rows) > 1:
            body.append(
                [f"<i>{escape(method)}</i> <small>mean ± deviation</small>", *(deviation(rows, column) for column in COLUMNS)]
            )
    title = f"First attempt → final answer, per cent right{first_of(MOST_DUMBBELLS, len(pairs))}"
    plot = dumbbell_plot(title, pairs[:MOST_DUMBBELLS], ("first attempt", "final, 95 % interval"))
    return table(["method", *COLUMNS.values()], body, kind="wide") + plot


def cell(row: dict[str, Any], column: str) -> str:
    return f"{number(row.get(column), '+.1f' if column == 'delta' else '.1f')} {interval((row.get('ci95') or {}).get(column))}"


def deviation(rows: list[dict[str, Any] | None], column: str) -> str:
    found = spread(rows, column)
    return "–" if found is None else f"<i>{number(found[0])} ± {number(found[1])}</i>"


def differences(runs: list[RunFiles], aligned: dict[tuple[str, str], list[dict[str, Any] | None]]) -> str:
    tests = paired_tests([run.path for run in runs], aligned)
    if not tests:
        return missing("No two runs have kept trajectories on the same problems.")
    body = [
        [
            f"{escape(test['method'])} <small>{escape(test['benchmark'])} · {escape(test['second'])}</small>",
            f"<b>{number(test['difference'], '+.1f')}</b> {interval(test['ci95'], '+.1f')}",
            *(number(test[key], ",") for key in ("problems", "better", "worse")),
            number(test["p"], ".3g"),
        ]
        for test in tests
    ]
    note = f"Final answers against {runs[0].name}, paired by problem: points, 95 % interval (bootstrap over problems), sign test."
    return table(["method", "difference", "problems", "better", "worse", "p"], body, kind="wide") + missing(note)


def curves(runs: list[RunFiles]) -> str:
    plots = ""
    for (phase, key), title in CURVES.items():
        style = "o-" if "validation" in phase else "-"
        colours = itertools.cycle(COLOURS)
        lines = [(run.name, series(run.metrics, phase, key), next(colours), style) for run in runs]
        plots += line_plot(title, "RL step", lines)
    return f'<div class="plots">{plots}</div>' if plots else missing("No run has RL steps in metrics.jsonl.")


def seconds(runs: list[RunFiles]) -> str:
    found = [{line["name"]: line["seconds"] for line in run.phase("phase")} for run in runs]
    names = list(dict.fromkeys(name for phases in found for name in phases))
    body = [[escape(name), *(number(phases.get(name), ",.0f") for phases in found)] for name in names]
    body += [["<b>all</b>", *(number(sum(phases.values()), ",.0f") for phases in found)]]
    return table(["phase", *(escape(run.name) for run in runs)], body) if names else ""


def settings(runs: list[RunFiles]) -> str:
    flat = [flattened(run.path / "config.yaml") for run in runs]
    keys = [
        key for key in dict.fromkeys(key for found in flat for key in found) if len({str(found.get(key)) for found in flat}) > 1
    ]
    body = [[escape(key), *(f"<code>{escape(found.get(key, '–'))}</code>" for found in flat)] for key in keys]
    return table(["setting", *(escape(run.name) for run in runs)], body) if body else missing("The configurations are equal.")


def flattened(config: Path) -> dict[str, Any]:
    sections = read_settings(config) if config.is_file() else {}
    return {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}
