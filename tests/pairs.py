"""Pairs of answers as a table, which needs no quotes."""


def pairs(table: str) -> list[tuple[str, str]]:
    """One pair a line, ` | ` between the two; spaces around them count for nothing."""
    rows = [line.split(" | ") for line in table.splitlines() if line.strip()]
    return [(left.strip(), right.strip()) for left, right in rows]
