"""Sections about results.json: the summary, the table, what revising changed, verdicts, samples per problem."""

import re
from typing import Any

from srl.evaluation.metrics import RIGHT_RIGHT, RIGHT_WRONG, WRONG_RIGHT, WRONG_WRONG
from srl.evaluation.report.files import RunFiles
from srl.evaluation.report.markup import escape, folded, interval, label, missing, name_cell, number, table
from srl.evaluation.report.plots import BLUE, GOLD, GREEN, GREY, RED, VIOLET, dumbbell_plot, flow_plot, line_plot
from srl.trajectory import StopReason

MOST_DUMBBELLS = 12
MOST_FLOWS = 9
FLOW_COLOURS = {(0, 0): BLUE, (0, 1): RED, (1, 0): GREEN, (1, 1): GREY}
FLOWS = {(0, 0): RIGHT_RIGHT, (0, 1): RIGHT_WRONG, (1, 0): WRONG_RIGHT, (1, 1): WRONG_WRONG}
ENDS = {
    StopReason.VERIFIED: "the last verdict was “correct”",
    StopReason.ROUNDS: "revised as often as allowed",
    StopReason.ANSWERED: "the protocol asks for no verdict",
    StopReason.NO_VERDICT: "nothing was said of the answer",
    StopReason.NO_REVISION: "nothing came after “wrong”",
    StopReason.LENGTH: "cut off",
    StopReason.TOKENS: "all tokens of a trajectory used up",
    StopReason.TIME: "all seconds of a trajectory used up",
    StopReason.ACCEPTED: "the judge called the answer right",
    StopReason.REJECTED: "the judge called it wrong, and the protocol goes on from right ones only",
    StopReason.UNJUDGED: "the judge said nothing",
    StopReason.NO_ROOM: "the question leaves no room for an answer",
    StopReason.FAILED: "workers died or hung with it; it counts as wrong, and evaluate --model asks it again",
}
NO_ROWS = missing("results.json is missing or has no rows yet.")
RL = {"rl", "ppo", "grpo"}


def summary(run: RunFiles) -> str:
    """One screen: what came out, in a sentence, in six numbers and in a picture."""
    if not run.rows:
        return NO_ROWS
    benchmark = run.rows[0]["benchmark"]
    rows = [row for row in run.rows if row["benchmark"] == benchmark]
    stages = stage_rows(rows)
    path = " → ".join(f"{name} {number(row['final'])} %" for name, row in stages)
    last = stages[-1][1]
    delta = last["delta"]
    gain = f"correcting itself {'gains' if delta >= 0 else 'costs'} the model {number(abs(delta))} points"
    pairs = [(row["method"], row["turn1"], row["final"], ci(row, "final")) for row in rows[:MOST_DUMBBELLS]]
    title = f"First attempt → final answer on {benchmark}, per cent right{first_of(MOST_DUMBBELLS, len(rows))}"
    plot = dumbbell_plot(title, pairs, ("first attempt", "final, 95 % interval"))
    return (
        f'<p class="headline">{escape(path)}; {gain}.</p>\n'
        f'<p class="note">Final answers on {escape(benchmark)}{escape(asked_how(stages))}.</p>\n'
        f'<div class="screen">{tiles(last)}{plot}</div>\n'
    )


def first_of(most: int, there: int) -> str:
    return f" (the first {most} of {there} rows)" if there > most else ""


def asked_how(stages: list[tuple[str, dict[str, Any]]]) -> str:
    """By which protocol each was asked, where they differ: a base model that is asked turn by turn is told when to go on."""
    names: dict[str, list[str]] = {}
    for name, row in stages:
        names.setdefault(row.get("protocol", ""), []).append(name)
    if len(names) < 2:
        return ""
    how = "; ".join(f"{', '.join(those)}: {protocol}" for protocol, those in names.items())
    return f", by different protocols ({how})"


def tiles(row: dict[str, Any]) -> str:
    p = row.get("mcnemar_p")
    test = "McNemar" if row.get("trajectories") == row.get("n") else "sign test over problems"
    sure = "" if p is None else f"p {'&lt; 0.001' if p < 0.001 else '= ' + number(p, '.3f')} ({test})"
    facts = [
        ("final", f"{number(row['final'])} %", interval(ci(row, "final"))),
        ("gain by correcting", number(row["delta"], "+.1f"), sure),
        ("wrong → right", f"{number(row['i2c'])} %", interval(ci(row, "i2c"))),
        ("right → wrong", f"{number(row['c2i'])} %", interval(ci(row, "c2i"))),
        ("right answers called correct", percent(row.get("verdict_correct")), interval(ci(row, "verdict_correct"))),
        ("wrong answers called wrong", percent(row.get("verdict_wrong")), interval(ci(row, "verdict_wrong"))),
    ]
    items = "".join(f"<div><span>{name}</span><b>{value}</b><small>{more}</small></div>" for name, value, more in facts)
    return f'<div class="tiles"><p class="note">{escape(label(row))}</p>{items}</div>'


def percent(value: float | None) -> str:
    return "–" if value is None else f"{number(value)} %"


def ci(row: dict[str, Any], key: str) -> list[float] | None:
    return (row.get("ci95") or {}).get(key)


def stage_rows(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(stage, row): per stage the row with the plainest name, "IFT" over "IFT + gold verdict"; without any, the last row."""
    words = [set(re.findall(r"[a-z0-9]+", row["method"].lower())) for row in rows]
    found = []
    for name, wanted, unwanted in (("base", {"base"}, RL | {"ift"}), ("IFT", {"ift"}, RL), ("RL", RL, set())):
        fitting = [(len(w), index) for index, w in enumerate(words) if w & wanted and not w & unwanted]
        found += [(name, rows[min(fitting)[1]])] if fitting else []
    return found or [(rows[-1]["method"], rows[-1])]


COLUMNS = {  # key: heading, number format
    "turn1": ("turn&nbsp;1", ".1f"), "final": ("final <small>[95&nbsp;%]</small>", ".1f"), "delta": ("Δ", "+.1f"),
    "i2c": ("i→c", ".1f"), "c2i": ("c→i", ".1f"), "verdict_correct": ("verdict C", ".1f"), "verdict_wrong": ("verdict W", ".1f"),
    "format_failures": ("format failures", ".1f"), "samples_per_trajectory": ("answers", ".2f"),
    "tokens_per_trajectory": ("tokens", ".0f"), "n": ("n", ","), "temperature": ("T", "g"),
}  # fmt: skip
MORE_COLUMNS = {
    "delta": ("Δ", "+.1f"), "i2c": ("i→c", ".1f"), "c2i": ("c→i", ".1f"), "cl": ("CL", ".1f"), "cs": ("CS", ".1f"),
    "rss": ("RSS", ".2f"), "answer_change": ("answer changed", ".1f"), "edit_ratio": ("edit ratio", ".2f"),
    "mcnemar_p": ("p", ".3g"),
    "verdict_correct": ("verdict C", ".1f"), "verdict_wrong": ("verdict W", ".1f"),
}  # fmt: skip


def results_section(run: RunFiles) -> str:
    if not run.rows:
        return NO_ROWS
    note = (
        "Per cent of trajectories. Turn 1: first attempt right; final: last answer right; Δ = i→c − c→i; i→c: wrong, then right; "
        "c→i: right, then wrong; verdict C and W: right verdicts on correct and on wrong answers; format failures: no verdict, "
        "no revision after “wrong”, or cut off; answers, tokens: sampled per trajectory; n: problems."
    )
    more = (
        "CL and CS: share of right (wrong) first attempts whose final answer is right; where right ones are told that they "
        "are wrong, 100 − CL is p(c→i); RSS: 0.5 when correcting changes nothing; edit ratio: edit distance of first and last "
        "answer over their lengths, where there was a revision; p: turn 1 against final, McNemar's exact test (with several "
        "samples per problem, the sign test over problems). Intervals: 95 %, bootstrap over problems."
    )
    main = table(
        ["method"] + [heading for heading, _ in COLUMNS.values()], [cells(row, COLUMNS) for row in run.rows], kind="wide"
    )
    rest = table(
        ["method"] + [heading for heading, _ in MORE_COLUMNS.values()],
        [cells(row, MORE_COLUMNS, True) for row in run.rows],
        kind="wide",
    )
    return f'{main}<p class="note">{note}</p>\n' + folded("More metrics, with intervals", f'{rest}<p class="note">{more}</p>')


def cells(row: dict[str, Any], columns: dict[str, tuple[str, str]], intervals: bool = False) -> list[str]:
    found = [name_cell(row)]
    for key, (_, form) in columns.items():
        spread = interval(ci(row, key)) if intervals or key == "final" else ""
        value = number(row.get(key), form)
        found.append((f"<b>{value}</b> " if key == "final" else f"{value} ") + spread)
    return found


def flow_section(run: RunFiles) -> str:
    """How many went from right or wrong first attempts to right or wrong final answers, one picture per method."""
    if not run.rows:
        return NO_ROWS
    plots = []
    for row in run.rows[:MOST_FLOWS]:
        shares = dict(
            zip(FLOWS, (row["turn1"] - row["c2i"], row["c2i"], row["i2c"], 100 - row["turn1"] - row["i2c"]), strict=True)
        )
        shares = {pair: max(0.0, value) for pair, value in shares.items()}
        plots.append(flow_plot(f"{label(row)}", shares, ("first attempt", "final"), FLOW_COLOURS))
    legend = '<p class="note">Per cent of trajectories. <span class="key green">wrong → right</span> '
    legend += '<span class="key red">right → wrong</span></p>'
    rest = f'<p class="note">The first {MOST_FLOWS} of {len(run.rows)} rows.</p>\n' if len(run.rows) > MOST_FLOWS else ""
    rounds = [row for row in run.rows if len(row.get("rounds") or {}) > 2]
    tables = f'<div class="side">{rounds_table(rounds)}{ends_table(run.rows)}</div>\n'
    return f'{legend}<div class="flows">{"".join(plots)}</div>\n{rest}{tables}'


def rounds_table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    most = max(len(row["rounds"]) for row in rows)
    body = [[name_cell(row), *(number(row["rounds"].get(str(count), 0), ",") for count in range(most))] for row in rows]
    return table(["revisions", *map(str, range(most))], body)


def ends_table(rows: list[dict[str, Any]]) -> str:
    """Why trajectories stopped, counted; reasons that none has are left out."""
    ends = [reason.value for reason in StopReason if any((row.get("stops") or {}).get(reason) for row in rows)]
    if not ends:
        return ""
    body = [[name_cell(row), *(number((row.get("stops") or {}).get(end), ",") for end in ends)] for row in rows]
    said = "; ".join(f"{end.replace('_', ' ')}: {ENDS[end]}" for end in ends)
    ended = table(["stopped because", *(end.replace("_", " ") for end in ends)], body)
    return f"<div>{ended}{missing(f'Trajectories. {said[0].upper()}{said[1:]}.')}</div>"


def verdict_section(run: RunFiles) -> str:
    """Confusion of what the model said of its answers with what they were, and what follows from it."""
    rows = [row for row in run.rows if (row.get("verdict_correct"), row.get("verdict_wrong")) != (None, None)]
    if not rows:
        return missing("No row of results.json has verdicts.")
    grids = "".join(confusion_grid(row) for row in rows if "verdicts" in row)
    header = ["method", "accuracy", "balanced", "precision of “wrong”", "recall", "F1", "precision of “correct”", "recall", "F1"]
    body = []
    for row in rows:
        found = row.get("verdicts") or {}
        scores = [found.get("accuracy"), found.get("balanced_accuracy")]
        scores += [
            (found.get(f"of_{word}") or {}).get(key) for word in ("wrong", "correct") for key in ("precision", "recall", "f1")
        ]
        body.append([name_cell(row), *map(number, scores)])
    note = missing(
        "Per cent of verdicts. Rows of a grid: what the answer was; columns: what was said of it, by the model or, where the "
        "protocol says it in its place, by the gold answer, a judge or a misleading word."
    )
    return f'<div class="grids">{grids}</div>{table(header, body, kind="wide")}{note}'


def confusion_grid(row: dict[str, Any]) -> str:
    lines = []
    for truth in ("right", "wrong"):
        counts = row["verdicts"][truth]
        total = sum(counts.values()) or 1
        line = f"<th>{truth}</th>"
        for said, count in counts.items():
            good = (truth, said) in (("right", "correct"), ("wrong", "wrong"))
            share = 100 * count / total
            cell = f"<b>{share:.1f}</b> <small>{count:,}</small>"
            line += f'<td class="{"good" if good else "bad"}" style="--share: {share:.0f}%">{cell}</td>'
        lines.append(f"<tr>{line}</tr>")
    head = "<tr><th></th><th>“correct”</th><th>“wrong”</th><th>nothing</th></tr>"
    return f'<table class="grid"><caption>{escape(label(row))}</caption>{head}{"".join(lines)}</table>'


def scaling_section(run: RunFiles) -> str:
    """Test-time scaling of rows with several samples per problem; "" if there are none."""
    rows = [row for row in run.rows if row.get("scaling")]
    plots = ""
    for row in rows:
        found = row["scaling"]
        curves = [("self-rewarding, majority", (found["answers"], found["maj"]), GREEN, "o-")]
        curves += [("independent attempts, majority", (found["n"], found["independent"]), BLUE, "o-")]
        curves += [("best of n by own verdict", (found["answers"], found["best_of"]), GOLD, "o--")]
        stops = found["early_stop"]
        per_sample = found["answers"][0]
        used = [count * per_sample for _, count in stops]
        curves += [("stop at the first “correct”", (used, [right for right, _ in stops]), VIOLET, "o:")]
        plots += line_plot(f"{label(row)}: right, % by answers used per problem", "answers", curves, whole_steps=False)
    return f'<div class="plots">{plots}</div>\n{matched_table(rows)}' if rows else ""


def matched_table(rows: list[dict[str, Any]]) -> str:
    sides = {"self_rewarding": ["self-rewarding", "trajectories", "tokens"], "independent": ["independent", "attempts", "tokens"]}
    body = []
    for row in rows:
        for point in row["scaling"]["matched"]:
            numbers = [number(point["budget"], ",.0f")]
            for side in sides:
                right, tokens, samples = point[side]
                numbers += [f"<b>{number(right)}</b>", number(samples, ".1f"), number(tokens, ",.0f")]
            numbers.append(number(point["self_rewarding"][0] - point["independent"][0], "+.1f"))
            body.append([name_cell(row), *numbers])
    if not body:
        return missing("The samples are too few for a comparison at equal tokens.")
    note = "Majority of what so many sampled tokens pay for: whole trajectories, or first attempts alone, as far as those last."
    header = ["method", "tokens per problem", *sides["self_rewarding"], *sides["independent"], "gain"]
    return table(header, body, kind="wide") + missing(note)
