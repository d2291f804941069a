"""Sections about metrics.jsonl and the data card: curves, where the time went, alarms, stage-1 data."""

import re
from typing import Any

from srl.evaluation.report.files import RunFiles, series
from srl.evaluation.report.markup import escape, folded, missing, number, table
from srl.evaluation.report.plots import BLUE, GOLD, GREEN, GREY, RED, VIOLET, Span, bar_plot, histogram_plot, line_plot, span_plot
from srl.pipelines.card import histogram_bars

LANES = {"phase": GREY, "rollout": BLUE, "reward": GREEN, "learner": GOLD, "weights": RED, "validation": VIOLET}
NO_RL = missing("metrics.jsonl has no RL steps.")


def accuracy_section(run: RunFiles) -> str:
    curves = [
        (f"{name}, {place}", series(run.metrics, phase, key), colour, style)
        for place, phase, style in (("training", "rl", "-"), ("validation", "rl-validation", "o--"))
        for name, key, colour in (("turn 1", "turn1", BLUE), ("final", "final", GREEN))
    ]
    plots = [line_plot("right answers, %", "RL step", curves)]
    verdicts = [("on correct answers", "verdict_correct", GREEN), ("on wrong answers", "verdict_wrong", RED)]
    said = [(name, series(run.metrics, "rl-validation", key), colour, "o-") for name, key, colour in verdicts]
    plots.append(line_plot("right verdicts in validation, %", "RL step", said))
    return f'<div class="plots">{"".join(plots)}</div>\n' if any(plots) else NO_RL


def optimisation_section(run: RunFiles) -> str:
    wanted = {"reward": "reward, mean per trajectory", "kl": "KL to the reference, nats per token"}
    wanted |= {"entropy": "entropy, nats per token", "gradient_norm": "gradient norm"}
    wanted |= {"clipped": "share of clipped tokens", "groups_without_signal": "groups without signal"}
    plots = [line_plot(title, "RL step", [("", series(run.metrics, "rl", key), BLUE, "-")]) for key, title in wanted.items()]
    return f'<div class="plots">{"".join(plots)}</div>\n' if any(plots) else NO_RL


def alarm_section(run: RunFiles) -> str:
    lines = run.phase("alarm")
    if not lines:
        return missing("No alarm was raised.")
    body = [[escape(line.get("name", "alarm")), number(line.get("step"), ","), escape(line.get("meaning", ""))] for line in lines]
    return table(["alarm", "step", "what was seen"], body, kind="alarms")


def time_section(run: RunFiles) -> str:
    """Seconds per phase, tokens per second, and who worked when."""
    seconds: dict[str, float] = {}
    for line in run.phase("phase"):
        seconds[line["name"]] = seconds.get(line["name"], 0.0) + line["seconds"]
    if not seconds:
        return missing("metrics.jsonl has no phases.")
    total = sum(seconds.values()) or 1.0
    bars = [(f"{name}  {value:,.1f} s ({100 * value / total:.0f} %)", [value]) for name, value in seconds.items()]
    plots = bar_plot(f"seconds per phase, {total:,.0f} s in all", bars, {"": BLUE}) + rate_plot(run)
    phases, spans = timeline(run.metrics)
    title = "Who worked when: seconds of work, pauses between commands left out"
    lanes = span_plot(title, [("phase", *span[1:]) for span in phases] + spans, phases, LANES, "seconds")
    return f'<div class="plots">{plots}{throughput(run, seconds)}</div>\n<div class="scroll">{lanes}</div>\n'


def throughput(run: RunFiles, seconds: dict[str, float]) -> str:
    """Tokens, seconds and tokens per second of every phase that says how many tokens it handled."""
    rl = run.phase("rl")
    found = [("stage 1, sampling", total(run.phase("sample"), "tokens"), total(run.phase("sample"), "seconds"))]
    found += [("fine-tuning, trained tokens", total(run.phase("sft"), "trained_tokens"), seconds.get("sft", 0.0))]
    found += [
        ("RL, rollout", total(rl, "tokens"), total(rl, "rollout_s")),
        ("RL, learner", total(rl, "tokens"), total(rl, "learner_s")),
    ]
    found += [("RL, all", total(rl, "tokens"), seconds.get("rl", 0.0))]
    body = [
        [name, number(tokens, ",.0f"), number(time, ",.0f"), number(tokens / time, ",.0f")]
        for name, tokens, time in found
        if tokens and time
    ]
    return f"<div>{table(['phase', 'tokens', 'seconds', 'tokens per second'], body)}</div>" if body else ""


def total(lines: list[dict[str, Any]], key: str) -> float:
    return sum(line.get(key) or 0.0 for line in lines)


def rate_plot(run: RunFiles) -> str:
    """Tokens per second of a whole step, and of its rollout and learner parts while they work."""
    curves = []
    for name, key, colour in (("whole step", "seconds", GREY), ("rollout", "rollout_s", BLUE), ("learner", "learner_s", GOLD)):
        points = {line["step"]: line["tokens"] / line[key] for line in run.phase("rl") if line.get(key) and line.get("tokens")}
        steps = sorted(points)
        curves.append((name, (steps, [points[step] for step in steps]), colour, "-"))
    return line_plot("sampled tokens per second in RL", "RL step", curves)


def timeline(lines: list[dict[str, Any]]) -> tuple[list[Span], list[Span]]:
    """Spans (name, start, end) in seconds, of phases and of the lanes that worked in RL.

    A phase's line comes after those of its steps. Steps and validations are laid end to end from the start of their phase, in
    proportion when they do not fit; what else a phase did (starting, saving) is left open.
    """
    phases, lanes, start, parts = [], [], 0.0, []
    for line in lines:
        if line.get("phase") == "rl":
            parts += [(lane, line.get(f"{lane}_s") or 0.0) for lane in ("rollout", "reward", "learner", "weights")]
        elif line.get("phase") == "rl-validation":
            parts.append(("validation", line.get("seconds") or 0.0))
        if line.get("phase") != "phase":
            continue
        length, total = line["seconds"], sum(seconds for _, seconds in parts)
        phases.append((line["name"], start, start + 0.997 * length))
        clock, scale = start, min(1.0, length / total) if total else 1.0
        for lane, seconds in parts if line["name"] == "rl" else []:
            lanes.append((lane, clock, clock + scale * seconds))
            clock += scale * seconds
        start, parts = start + length, []
    return phases, [span for span in lanes if span[2] > span[1]]


MEANING = {"D1": "D1: wrong, corrected", "D2": "D2: correct, called wrong, kept", "D3": "D3: correct, called correct"}
PARTS = {"classes": "demonstrations", "counts": "sampled", "dropped": "dropped because"}


def data_section(run: RunFiles) -> str:
    curves = [("training", series(run.metrics, "sft", "loss"), BLUE, "-")]
    curves += [("validation", series(run.metrics, "sft", "validation_loss"), GREEN, "o--")]
    plot = line_plot("fine-tuning loss, nats per token", "SFT step", curves) or missing("metrics.jsonl has no SFT steps.")
    card = run.card
    if card is None:
        return missing("stage1/card.json is missing.") + plot
    first = "".join(counted(title, card.get(key) or {}) for key, title in PARTS.items())
    more = "".join(counted(title, counts) for title, counts in (card.get("tables") or {}).items())
    examples = "".join(demonstration(example) for example in card.get("examples") or [])
    settings = counted("setting", card.get("settings") or {})
    folds = [
        ("Lengths, difficulty, verdicts", more),
        ("Examples of demonstrations", examples),
        ("Settings of this set", settings),
    ]
    return f'<div class="side">{first}</div>\n{plot}' + "".join(
        folded(title, f'<div class="side">{content}</div>') for title, content in folds if content
    )


def counted(title: str, counts: dict[str, Any]) -> str:
    """Counts by name as a table, by number as a histogram."""
    if len(counts) > 2 and all(re.fullmatch(r"\d+(\.\d+)?", key) for key in counts):
        return histogram_plot(title, histogram_bars(title, counts))
    body = [[escape(MEANING.get(key, key.replace("_", " "))), plain(value)] for key, value in counts.items()]
    return table([escape(title), ""], body) if body else ""


def demonstration(example: dict[str, Any]) -> str:
    """What is said, with the pieces that are trained on marked."""
    said = ""
    for message in example["messages"]:
        pieces = "".join(
            f"<mark>{escape(piece['text'])}</mark>" if piece["weight"] > 0 else escape(piece["text"])
            for piece in message["pieces"]
        )
        said += f'<div class="turn"><header><b>{escape(message["role"])}</b></header><pre dir="auto">{pieces}</pre></div>'
    return f'<div class="demonstration"><b>{escape(example["class"])}</b> <small>{escape(example["id"])}</small>{said}</div>'


def plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return number(value, ",")
    return number(value, ".4g") if isinstance(value, float) else "–" if value is None else escape(value)
