"""Small pieces of HTML. Everything that a model or a file wrote passes `escape` before it enters the page."""

import html
from typing import Any


def escape(text: Any) -> str:
    return html.escape(str(text))


def missing(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n'


def number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form).replace("-", "−")


def label(row: dict[str, Any]) -> str:
    return f"{row['method']} · {row['benchmark']}"


def name_cell(row: dict[str, Any]) -> str:
    return f"{escape(row['method'])} <small>{escape(row['benchmark'])}</small>"


def interval(values: list[float] | None, form: str = ".1f") -> str:
    return f"<small>[{number(values[0], form)}, {number(values[1], form)}]</small>" if values else ""


def table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    """HTML table of cells that are already HTML; the first column holds names."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>\n"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>\n'


def badge(text: str, kind: str) -> str:
    return f'<span class="badge {kind}">{escape(text)}</span>'


def folded(title: str, content: str) -> str:
    """Shown on demand; open in print."""
    return f"<details class='folded'><summary>{escape(title)}</summary>{content}</details>\n"
