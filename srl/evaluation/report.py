"""The run report: one self-contained HTML page from the files of a run directory.

Everything that a model wrote is untrusted: it passes `escape` before it enters the page, no data is embedded in scripts,
and the page's own policy lets the browser run only the one script whose hash it names.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from srl.evaluation.metrics import TRANSITIONS, is_right, transition
from srl.trajectory import Trajectory, TurnKind, Verdict, from_record

MOST_TRAJECTORIES = 200
MOST_CHARACTERS = 4000  # shown of one piece of text
MOST_HTML = 3_000_000  # characters of the section with trajectories

# Drawn with these exact colours, which then become CSS variables, so that plots follow the reader's light or dark scheme.
INK, BLUE, GREEN, RED, GREY, ON_BAR = DRAWN = "#010101", "#a00001", "#a00002", "#a00003", "#a00004", "#a00005"
CSS_COLOURS = dict(zip(DRAWN, ("--ink", "--blue", "--green", "--red", "--grey", "--on-bar"), strict=True))
PLOT_SETTINGS = {"font.size": 9, "font.sans-serif": ["DejaVu Sans"], "axes.edgecolor": GREY}
PLOT_SETTINGS |= {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
TRANSITION_COLOURS = dict(zip(TRANSITIONS, (BLUE, RED, GREEN, GREY), strict=True))

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2126; --soft: #5b6570; --line: #d9dee3; --card: #f5f7f9;
  --blue: #2a68b0; --green: #187a5c; --red: #bd4526; --grey: #6f7780; --gold: #a87400; --violet: #7b4fb5; --on-bar: #fff; }
@media screen and (prefers-color-scheme: dark) { :root {
  --page: #15181b; --ink: #e4e8eb; --soft: #a0aab3; --line: #353c43; --card: #1e2327; --on-bar: #101214;
  --blue: #78aef0; --green: #58c39b; --red: #f08a68; --grey: #98a2ab; --gold: #e0b450; --violet: #b998ee; } }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; } h1 { font-size: 1rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); break-after: avoid; }
.headline { font-size: clamp(1.25rem, 4vw, 1.8rem); line-height: 1.3; font-weight: 600; margin: .3rem 0 0; text-wrap: balance; }
h1, .note, figcaption, header, th, small { color: var(--soft); } .note, figcaption, header { font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid var(--line); line-height: 1.3; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; } td { vertical-align: baseline; } small { font-weight: 400; }
tr > :first-child { text-align: left; padding-left: 0; white-space: normal; } .wide { width: 100%; }
.wide tr > :first-child { min-width: 7.5rem; position: sticky; left: 0; background: var(--page); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; max-width: 36rem; break-inside: avoid; } svg { width: 100%; height: auto; overflow: visible; }
.side, .filters { display: flex; flex-wrap: wrap; gap: .6rem 2rem; align-items: flex-start; margin-bottom: .9rem; }
.trajectory { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: .4rem .7rem; overflow-wrap: anywhere; }
summary span { unicode-bidi: isolate; } .trajectory p { margin: .4rem 0; } select { font: inherit; max-width: 100%; }
.badge { display: inline-block; border-radius: 4px; padding: 0 .45rem; margin-right: .4rem; font-size: .82rem; }
.badge { color: var(--on-bar); background: var(--grey); print-color-adjust: exact; }
.badge.ok { background: var(--green); } .badge.bad { background: var(--red); } .badge.kept { background: var(--blue); }
.turn { border-left: 4px solid var(--grey); background: var(--card); padding: .4rem .7rem; margin: .5rem 0; }
.attempt { border-color: var(--blue); } .verdict { border-color: var(--gold); } .revision { border-color: var(--violet); }
pre { margin: .2rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 10pt; } .filters { display: none; }
  .scroll { overflow: visible; } table { font-size: 8pt; } th, td { padding: .2rem .3rem; }
  .plots { grid-template-columns: 1fr 1fr; } figure { max-width: 26rem; } }
"""

SCRIPT = """
const pick = [...document.querySelectorAll("select")];
function show() {
  const items = [...document.querySelectorAll(".trajectory")];
  for (const item of items) item.hidden = pick.some(select => select.value && select.value !== item.dataset[select.name]);
  document.getElementById("shown").textContent = items.filter(item => !item.hidden).length + " shown";
}
for (const select of pick) select.addEventListener("change", show);
if (pick.length) show();
"""


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run directory, atomically, and return its path.

    Reads results.json, metrics.jsonl, trajectories.jsonl, stage1/card.json and config.yaml; a section whose file is missing
    says so in one line. Shares in those files are per cent. Raises ValueError for a results.json or card.json that is not JSON.
    """
    target, temporary = Path(directory) / "report.html", Path(directory) / f".report.{os.getpid()}.tmp"
    # Lone surrogates are legal in JSON strings but not in UTF-8.
    temporary.write_bytes(page(Path(directory)).encode("utf-8", "replace"))
    os.replace(temporary, target)
    return target


def page(directory: Path) -> str:
    rows = (read_json(directory / "results.json") or {}).get("rows", [])
    lines, bad_lines = read_lines(directory / "metrics.jsonl")
    samples, bad_samples = read_lines(directory / "trajectories.jsonl")
    config = file.read_text("utf-8", "replace") if (file := directory / "config.yaml").is_file() else ""
    no_rows = missing("results.json is missing or has no rows yet.")
    sections = {
        "Results": results_table(rows) if rows else no_rows,
        "Accuracy over RL steps": accuracy_plot(lines) + bad_lines,
        "Reward, KL and optimisation": optimisation_plots(lines),
        "What revising changed": transition_plot(rows) if rows else no_rows,
        "Verdicts": verdict_table(rows),
        "Stage-1 data": stage1_section(read_json(directory / "stage1" / "card.json"), lines),
        "Where the time went": time_plot(lines),
        "Trajectories to read": trajectories_section(samples) + bad_samples,
        "Configuration": f"<pre>{escape(config)}</pre>" if config else missing("config.yaml is missing."),
    }
    body = "".join(f"<section><h2>{escape(title)}</h2>\n{content}</section>\n" for title, content in sections.items())
    name = escape(directory.resolve().name)
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>srl: {name}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{STYLE}</style></head>\n'
        f"<body><h1>Run {name}</h1>\n{headline(rows) if rows else no_rows}{body}<script>{SCRIPT}</script></body></html>\n"
    )


def escape(text: Any) -> str:
    return html.escape(str(text))


def missing(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n'


def read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], str]:
    """JSON lines, and a remark on those that are not: the last line of a run that is still writing, or was killed."""
    found, bad = [], 0
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError:
            bad += 1
    return found, missing(f"Lines of {path.name} that are not JSON and were left out: {bad}.") if bad else ""


def number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form).replace("-", "−")


def label(row: dict[str, Any]) -> str:
    return f"{row['method']} · {row['benchmark']}"


def name_cell(row: dict[str, Any]) -> str:
    return f"{escape(row['method'])} <small>{escape(row['benchmark'])}</small>"


def table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    """HTML table of cells that are already HTML; the first column holds names."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>\n"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>\n'


def headline(rows: list[dict[str, Any]]) -> str:
    """One sentence about the first benchmark: the final accuracy of base, IFT and RL, and what self-correction gains."""
    benchmark = rows[0]["benchmark"]
    stages = stage_rows([row for row in rows if row["benchmark"] == benchmark])
    path = " → ".join(f"{name} {number(row['final'])} %" for name, row in stages)
    delta = stages[-1][1]["delta"]
    gain = f"correcting itself {'gains' if delta >= 0 else 'costs'} the model {number(abs(delta))} points"
    return f'<p class="headline">{escape(path)}; {gain}.</p>\n<p class="note">Final answers on {escape(benchmark)}.</p>\n'


def stage_rows(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(stage, row): per stage the row with the plainest name, "IFT" over "IFT + gold verdict"; without any, the last row."""
    words = [set(re.findall(r"[a-z0-9]+", row["method"].lower())) for row in rows]
    rl, found = {"rl", "ppo", "grpo"}, []
    for name, wanted, unwanted in (("base", {"base"}, rl | {"ift"}), ("IFT", {"ift"}, rl), ("RL", rl, set())):
        fitting = [(len(w), index) for index, w in enumerate(words) if w & wanted and not w & unwanted]
        found += [(name, rows[min(fitting)[1]])] if fitting else []
    return found or [(rows[-1]["method"], rows[-1])]


def results_table(rows: list[dict[str, Any]]) -> str:
    header = ["method", "turn&nbsp;1", "final <small>95&nbsp;%&nbsp;interval</small>", "Δ", "i→c", "c→i", "verdict C"]
    header += ["verdict W", "format failures", "samples", "tokens", "n", "T"]
    note = (
        "Per cent of trajectories. Turn 1: first attempt right; final: last answer right; Δ = i→c − c→i; i→c: wrong, then right; "
        "c→i: right, then wrong; verdict C and W: right verdicts on correct and on wrong answers; format failures: no verdict, "
        "no revision after “wrong”, or cut off; samples, tokens: answers and sampled tokens per trajectory; n: problems."
    )
    return table(header, [result_cells(row) for row in rows], kind="wide") + f'<p class="note">{note}</p>\n'


def result_cells(row: dict[str, Any]) -> list[str]:
    low, high = row.get("ci95", {}).get("final") or (None, None)
    final = f"<b>{number(row.get('final'))}</b> <small>[{number(low)}, {number(high)}]</small>"
    forms = {"delta": "+.1f"} | dict.fromkeys(("i2c", "c2i", "verdict_correct", "verdict_wrong", "format_failures"), ".1f")
    forms |= {"samples_per_trajectory": ".2f", "tokens_per_trajectory": ".0f", "n": ",", "temperature": "g"}
    return [name_cell(row), number(row.get("turn1")), final, *(number(row.get(key), form) for key, form in forms.items())]


def series(lines: list[dict[str, Any]], phase: str, key: str) -> tuple[list[float], list[float]]:
    """Steps and values; of two lines with one step, which a resumed run writes, the later counts."""
    points = {line["step"]: line[key] for line in lines if line.get("phase") == phase and line.get(key) is not None}
    return tuple(zip(*sorted(points.items()), strict=True)) or ((), ())


def accuracy_plot(lines: list[dict[str, Any]]) -> str:
    curves = [
        (f"{name}, {place}", series(lines, phase, key), colour, style)
        for place, phase, style in (("training", "rl", "-"), ("validation", "rl-validation", "o--"))
        for name, key, colour in (("turn 1", "turn1", BLUE), ("final", "final", GREEN))
    ]
    return line_plot("right answers, %", "RL step", curves) or missing("metrics.jsonl has no RL steps.")


def optimisation_plots(lines: list[dict[str, Any]]) -> str:
    wanted = {"reward": "reward, mean per trajectory", "kl": "KL to the stage-1 model, nats per token"}
    wanted |= {"entropy": "entropy, nats per token", "gradient_norm": "gradient norm"}
    wanted |= {"clipped": "share of clipped tokens", "groups_without_signal": "groups without signal"}
    plots = [line_plot(title, "RL step", [("", series(lines, "rl", key), BLUE, "-")]) for key, title in wanted.items()]
    return f'<div class="plots">{"".join(plots)}</div>\n' if any(plots) else missing("metrics.jsonl has no RL steps.")


def line_plot(title: str, axis: str, curves: list[tuple[str, tuple, str, str]]) -> str:
    """One figure of (name, (steps, values), colour, style) curves; "" if none has a point."""
    curves = [curve for curve in curves if curve[1][0]]
    if not curves:
        return ""
    figure, axes = new_figure(2.5)
    for name, (steps, values), colour, style in curves:
        axes.plot(steps, values, style if len(steps) > 1 else "o", color=colour, label=name, linewidth=1.5, markersize=3.5)
    axes.set_xlabel(axis)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if curves[0][0]:
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return as_svg(figure, title)


def bar_plot(title: str, bars: list[tuple[str, list[float]]], parts: dict[str, str], form: str = "") -> str:
    """Horizontal bars, each under its name; `parts` maps the stacked pieces to colours, `form` writes their values."""
    figure, axes = new_figure(0.5 * (len(parts) > 1) + 0.5 * len(bars))
    widest = max(sum(values) for _, values in bars) or 1.0
    for place, (name, values) in enumerate(bars):
        axes.text(0, place - 0.27, textwrap.shorten(name, 62), va="bottom", color=INK, in_layout=False)
        for left, value, colour in zip(itertools.accumulate([0.0, *values[:-1]]), values, parts.values(), strict=True):
            axes.barh(place, value, 0.46, left=left, color=colour)
            if form and value > 0.07 * widest:
                axes.text(left + value / 2, place + 0.02, format(value, form), ha="center", va="center", color=ON_BAR)
    axes.set(xlim=(0, widest), ylim=(len(bars) - 0.75, -0.75))
    axes.axis("off")
    if len(parts) > 1:
        patches = [matplotlib.patches.Patch(color=colour, label=part.replace("->", " → ")) for part, colour in parts.items()]
        figure.legend(handles=patches, loc="outside upper left", ncols=2, frameon=False)
    return as_svg(figure, title)


def new_figure(height: float) -> tuple[Figure, Any]:
    """Height in inches; narrow enough that the text stays readable on a phone."""
    with matplotlib.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        return figure, figure.subplots()


def as_svg(figure: Figure, title: str) -> str:
    """A <figure> with inline SVG: transparent, text as text, colours as CSS variables, ids unique in the page."""
    for text in figure.findobj(matplotlib.text.Text):
        text.set(parse_math=False, color=INK if text.get_color() == "black" else text.get_color())
    buffer = io.StringIO()
    with matplotlib.rc_context(PLOT_SETTINGS | {"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"^.*?(?=<svg )|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    prefix = hashlib.sha256(title.encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{prefix}-", svg)
    for drawn, colour in CSS_COLOURS.items():
        svg = svg.replace(drawn, f"var({colour})")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>\n"


def transition_plot(rows: list[dict[str, Any]]) -> str:
    bars = []
    for row in rows:
        shares = [row["turn1"] - row["c2i"], row["c2i"], row["i2c"], 100 - row["turn1"] - row["i2c"]]
        bars.append((f"{label(row)}: {number(row['turn1'])} → {number(row['final'])}", shares))
    return bar_plot("First attempt → final answer, per cent of trajectories", bars, TRANSITION_COLOURS, ".1f")


def verdict_table(rows: list[dict[str, Any]]) -> str:
    def pair(right: float | None) -> list[str]:
        return [number(right), number(None if right is None else 100 - right)]

    said = [(name_cell(row), row.get("verdict_correct"), row.get("verdict_wrong")) for row in rows]
    cells = [[name, *pair(right), *pair(wrong)] for name, right, wrong in said if (right, wrong) != (None, None)]
    header = ["method", "correct, called correct", "correct, called wrong", "wrong, called wrong", "wrong, called correct"]
    note = '<p class="note">Per cent of the verdicts on correct answers and of those on wrong answers.</p>\n'
    return table(header, cells, kind="wide") + note if cells else missing("No row of results.json has verdicts.")


def stage1_section(card: dict[str, Any] | None, lines: list[dict[str, Any]]) -> str:
    curves = [("training", series(lines, "sft", "loss"), BLUE, "-")]
    curves += [("validation", series(lines, "sft", "validation_loss"), GREEN, "o--")]
    plot = line_plot("fine-tuning loss, nats per token", "SFT step", curves) or missing("metrics.jsonl has no SFT steps.")
    if card is None:
        return missing("stage1/card.json is missing.") + plot
    meaning = {"D1": "D1: wrong, corrected", "D2": "D2: correct, called wrong, kept", "D3": "D3: correct, called correct"}
    tables = ""
    for title, key in (("demonstrations", "classes"), ("sampled", "counts"), ("dropped because", "dropped")):
        cells = [[escape(meaning.get(name, name.replace("_", " "))), number(n, ",")] for name, n in card.get(key, {}).items()]
        tables += table([title, "n"], cells) if cells else ""
    return f'<div class="side">{tables}</div>\n{plot}'


def time_plot(lines: list[dict[str, Any]]) -> str:
    seconds: dict[str, float] = {}
    for line in lines:
        if line.get("phase") == "phase":
            seconds[line["name"]] = seconds.get(line["name"], 0.0) + line["seconds"]
    if not seconds:
        return missing("metrics.jsonl has no phases.")
    total = sum(seconds.values()) or 1.0
    bars = [(f"{name}  {value:,.1f} s ({100 * value / total:.0f} %)", [value]) for name, value in seconds.items()]
    return bar_plot(f"seconds per phase, {total:,.0f} s in all", bars, {"": BLUE})


def trajectories_section(records: list[dict[str, Any]]) -> str:
    if not records:
        return missing("trajectories.jsonl is missing or empty.")
    items = []
    for record in records:
        trajectory = from_record({key: value for key, value in record.items() if key not in ("method", "benchmark")})
        items.append((label(record), transition(trajectory), trajectory))
    articles = [trajectory_html(*item) for item in choose(items)]
    articles = articles[: sum(size <= MOST_HTML for size in itertools.accumulate(map(len, articles)))]
    picks = selector("method", sorted({item[0] for item in items})) + selector("transition", list(TRANSITIONS))
    note = f'<p class="note">{len(articles):,} of {len(records):,} in trajectories.jsonl, methods and transitions in turn.</p>\n'
    return f'{note}<div class="filters">{picks}<span id="shown" class="note"></span></div>\n{"".join(articles)}'


def choose(items: list[tuple[str, str, Trajectory]]) -> list[tuple[str, str, Trajectory]]:
    """At most `MOST_TRAJECTORIES`, one of each (method, transition) in turn, so that the rare ones are there too."""
    groups: dict[tuple[str, str], list] = {}
    for item in items:
        groups.setdefault(item[:2], []).append(item)
    rounds = itertools.zip_longest(*groups.values())
    return [item for turn in rounds for item in turn if item is not None][:MOST_TRAJECTORIES]


def selector(name: str, values: list[str]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(value.replace("->", " → "))}</option>' for value in values)
    return f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>\n'


def badge(text: str, kind: str) -> str:
    return f'<span class="badge {kind}">{escape(text)}</span>'


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Escaped text, cut to `most` characters."""
    return escape(text) if len(text) <= most else f"{escape(text[:most])} … ({len(text) - most:,} characters more)"


def trajectory_html(method: str, change: str, trajectory: Trajectory) -> str:
    kind = dict(zip(TRANSITIONS, ("kept", "bad", "ok", ""), strict=True))[change]
    stop = (trajectory.stop_reason or "unfinished").replace("_", " ")
    facts = f"gold {shortened(trajectory.gold, 200)} · stopped: {escape(stop)}"
    facts += "" if trajectory.reward is None else f" · reward {number(trajectory.reward, 'g')}"
    return (
        f'<details class="trajectory" data-method="{escape(method)}" data-transition="{escape(change)}">'
        f"<summary>{badge(change.replace('->', ' → '), kind)}<b>{escape(method)}</b> "
        f"<span>{escape(trajectory.question[:100])}</span></summary>"
        f'<p dir="auto">{shortened(trajectory.question)}</p><p class="note">{facts}</p>\n{turns_html(trajectory)}</details>\n'
    )


def turns_html(trajectory: Trajectory) -> str:
    turns, right = [], False
    for turn in trajectory.turns:
        found = ""
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            right = is_right(turn)
            answer = shortened(str(turn.answer), 200)
            found = badge(turn.outcome.replace("_", " "), "ok" if right else "bad") + f"answer {answer} · "
        elif turn.verdict is not None:
            agrees = right is (turn.verdict is Verdict.CORRECT)
            found = badge(f"says {turn.verdict}", "ok" if agrees else "bad") + ("rightly · " if agrees else "mistakenly · ")
        head = f"<header><b>{turn.kind.value}</b> {found}{len(turn.token_ids)} tokens</header>"
        turns.append(f'<div class="turn {turn.kind.value}">{head}<pre dir="auto">{shortened(turn.text)}</pre></div>\n')
    return "".join(turns)
