"""Plots by matplotlib as inline SVG that follows the reader's light or dark scheme."""

import hashlib
import io
import itertools
import re
import textwrap
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Curve

from srl.evaluation.report.markup import escape

# Drawn with these exact colours, which then become CSS variables.
INK, BLUE, GREEN, RED, GREY, ON_BAR, GOLD, VIOLET = DRAWN = tuple(
    ["#010101", "#a00001", "#a00002", "#a00003", "#a00004", "#a00005", "#a00006", "#a00007"]
)
VARIABLES = ("--ink", "--blue", "--green", "--red", "--grey", "--on-bar", "--gold", "--violet")
CSS_COLOURS = dict(zip(DRAWN, VARIABLES, strict=True))
PLOT_SETTINGS = {"font.size": 9, "font.sans-serif": ["DejaVu Sans"], "axes.edgecolor": GREY}
PLOT_SETTINGS |= {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}

Span = tuple[str, float, float]
Points = tuple[list[float], list[float]]


def new_figure(height: float, width: float = 4.8) -> tuple[Figure, Any]:
    """Inches; narrow enough that the text stays readable on a phone."""
    with matplotlib.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
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


def line_plot(title: str, axis: str, curves: list[tuple[str, Points, str, str]], *, whole_steps: bool = True) -> str:
    """One figure of (name, (x, y), colour, style) curves; "" if none has a point."""
    curves = [curve for curve in curves if curve[1][0]]
    if not curves:
        return ""
    figure, axes = new_figure(2.5)
    for name, (steps, values), colour, style in curves:
        marker = style if len(steps) > 1 else "o"
        axes.plot(steps, values, marker, color=colour, label=name, linewidth=1.5, markersize=3.5)
    axes.set_xlabel(axis)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    if whole_steps:
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
        figure.legend(handles=legend(parts), loc="outside upper left", ncols=2, frameon=False)
    return as_svg(figure, title)


def histogram_plot(title: str, counts: dict[tuple[float, float], int]) -> str:
    """Counts by (from, to) of their bar."""
    starts, widths = [start for start, _ in counts], [end - start for start, end in counts]
    figure, axes = new_figure(1.6, 3.4)
    axes.bar(starts, list(counts.values()), widths, align="edge", color=BLUE, edgecolor=ON_BAR, linewidth=0.4)
    return as_svg(figure, title)


def legend(parts: dict[str, str]) -> list[Patch]:
    return [Patch(color=colour, label=part.replace("->", " → ")) for part, colour in parts.items()]


def dumbbell_plot(title: str, pairs: list[tuple[str, float, float, list[float] | None]], names: tuple[str, str]) -> str:
    """One line per (name, before, after, interval of after): a hollow point, a filled point and its 95 % interval."""
    figure, axes = new_figure(0.75 + 0.46 * len(pairs))
    for place, (name, before, after, spread) in enumerate(pairs):
        colour = GREEN if after >= before else RED
        if spread:
            axes.plot(spread, [place, place], color=GREY, alpha=0.45, linewidth=6, solid_capstyle="butt")
        axes.plot([before, after], [place, place], color=colour, linewidth=2)
        axes.plot([before], [place], "o", color=BLUE, markersize=6, label=names[0] if not place else None)
        axes.plot([after], [place], "D", color=colour, markersize=6, label=names[1] if not place else None)
        axes.text(0.0, place - 0.24, textwrap.shorten(name, 56), va="bottom", color=INK, transform=axes.get_yaxis_transform())
    lowest = min(min(before, after, *(spread or [after])) for _, before, after, spread in pairs)
    highest = max(max(before, after, *(spread or [after])) for _, before, after, spread in pairs)
    axes.set(xlim=(max(0, lowest - 6), min(100, highest + 4)), ylim=(len(pairs) - 0.5, -0.85), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return as_svg(figure, title)


def flow_plot(
    title: str, flows: dict[tuple[int, int], float], sides: tuple[str, str], colours: dict[tuple[int, int], str]
) -> str:
    """Bands from left to right; `flows[a, b]` is the per cent that goes from a to b (0 above, 1 below)."""
    figure, axes = new_figure(1.7, 2.6)
    gap = 6.0
    starts = {side: [0.0, sum(value for (a, b), value in flows.items() if (a, b)[side] == 0) + gap] for side in (0, 1)}
    for (before, after), value in sorted(flows.items()):
        left, right = starts[0][before], starts[1][after]
        starts[0][before] += value
        starts[1][after] += value
        if value <= 0:
            continue
        corners = [(0, left), (0.5, left), (0.5, right), (1, right), (1, right + value), (0.5, right + value)]
        corners += [(0.5, left + value), (0, left + value), (0, left)]
        codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.CLOSEPOLY]
        axes.add_patch(PathPatch(Curve(corners, codes), facecolor=colours[before, after], alpha=0.8, linewidth=0))
        if value >= 11:  # as high as its text
            # Bands that cross are labelled where they are apart: falls at their start, rises at their end.
            place = {(0, 1): (0.13, left), (1, 0): (0.87, right)}.get((before, after), (0.5, (left + right) / 2))
            axes.text(place[0], place[1] + value / 2, f"{value:.1f}", ha="center", va="center", color=ON_BAR)
    totals = [[sum(value for pair, value in flows.items() if pair[side] == place) for place in (0, 1)] for side in (0, 1)]
    for side, shift in ((0, -0.03), (1, 1.03)):
        for place, word in enumerate(("right", "wrong")):
            middle = totals[side][place] / 2 + (totals[side][0] + gap) * place
            text = f"{word}\n{totals[side][place]:.1f}"
            axes.text(shift, middle, text, ha="right" if side == 0 else "left", va="center", color=INK, linespacing=1.1)
        axes.text(side, -5, sides[side], ha="center", va="bottom", color=GREY)
    axes.set(xlim=(-0.05, 1.05), ylim=(100 + gap, -12))
    axes.axis("off")
    return as_svg(figure, title)


def span_plot(title: str, spans: list[Span], named: list[Span], colours: dict[str, str], axis: str) -> str:
    """Who worked when: one lane per name, in the order of `colours`; `named` spans are labels in lane 0."""
    lanes = [name for name in colours if any(span[0] == name for span in spans)]
    figure, axes = new_figure(0.55 + 0.3 * len(lanes), 9.6)
    for place, name in enumerate(lanes):
        bars = [(start, end - start) for lane, start, end in spans if lane == name]
        axes.broken_barh(bars, (place - 0.36, 0.72), facecolor=colours[name], linewidth=0)
    for text, start, end in named:
        if (end - start) > 0.012 * len(text) * spans[-1][2]:
            axes.text((start + end) / 2, 0, text, ha="center", va="center", color=ON_BAR)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set(ylim=(len(lanes) - 0.5, -0.5), xlim=(min(s for _, s, _ in spans), max(e for _, _, e in spans)), xlabel=axis)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    return as_svg(figure, title).replace("<figure>", '<figure class="wide-figure">', 1)
