"""Short names in the table of results, each for one model, judge or benchmark alone. Pure."""

from collections.abc import Sequence


def shortest(parts: Sequence[str], meant: str, taken: dict[str, str]) -> str:
    """The last of `parts`, or as many of the last as it takes to say nothing that means another thing; goes into `taken`.

    `taken` has the meanings of names: a path, or what else tells `meant` from others.
    """
    names = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    name = next((name for name in names if taken.get(name, meant) == meant), meant)
    taken[name] = meant
    return name
