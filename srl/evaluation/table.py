"""Rows of results as plain text."""

import textwrap
from functools import partial
from typing import Any

HEADER = (
    ("", "method"), ("", "benchmark"), ("turn", "1"), ("final", "[95 % CI]"), ("", "delta"), ("", "i->c"), ("", "c->i"),
    ("verd.", "C"), ("verd.", "W"), ("", "format"), ("", "samples"), ("", "tokens"),
)  # fmt: skip


def format_table(rows: list[dict[str, Any]], width: int = 110) -> str:
    """Rows of `summarise` as aligned plain text of at most `width` columns; long names wrap, None is "-"."""
    cells = [table_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, *zip(*HEADER, strict=True), strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    for column in (0, 1):
        excess = sum(widths) + len(gap) * (len(widths) - 1) - width
        widths[column] = max(min(widths[column], 12), widths[column] - max(excess, 0))
    lines = [line for header in zip(*HEADER, strict=True) for line in aligned(list(header), widths, gap)]
    lines.append("-" * (sum(widths) + len(gap) * (len(widths) - 1)))
    return "\n".join(lines + [line for row in cells for line in aligned(row, widths, gap)])


def table_cells(row: dict[str, Any]) -> list[str]:
    def number(key: str, form: str = ".1f") -> str:
        return "-" if row[key] is None else format(row[key], form)

    low, high = row["ci95"]["final"]
    return [
        row["method"], row["benchmark"], number("turn1"), f"{number('final')} [{low:.1f},{high:.1f}]", number("delta", "+.1f"),
        number("i2c"), number("c2i"), number("verdict_correct"), number("verdict_wrong"), number("format_failures"),
        number("samples_per_trajectory", ".2f"), number("tokens_per_trajectory", ".0f"),
    ]  # fmt: skip


def aligned(cells: list[str], widths: list[int], gap: str) -> list[str]:
    """One table row as text lines: names left and wrapped, numbers right and on the first line."""
    wrap = partial(textwrap.wrap, break_on_hyphens=False)
    names = [wrap(cell, width) or [""] for cell, width in zip(cells[:2], widths[:2], strict=True)]
    lines = []
    for index in range(max(map(len, names))):
        left = [(name[index] if index < len(name) else "").ljust(width) for name, width in zip(names, widths[:2], strict=True)]
        right = [(cell if index == 0 else "").rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        lines.append(gap.join(left + right).rstrip())
    return lines
