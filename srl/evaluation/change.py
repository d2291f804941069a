"""How much a revision changes: what collapses to zero when a model only pretends to correct itself (arXiv 2409.12917)."""

from collections.abc import Sequence

from srl.evaluation.votes import answer_key
from srl.trajectory import Trajectory


def answer_changed(trajectory: Trajectory) -> bool:
    """Whether the answer that counts differs from the first attempt's. Right answers all count as the same answer."""
    answers = trajectory.answers()
    return bool(answers) and answer_key(answers[0]) != answer_key(trajectory.final())


def edit_ratio(first: Sequence[int], second: Sequence[int]) -> float:
    """Edit distance of two token sequences over the sum of their lengths: 0 if equal, 0.5 if equally long and all different."""
    return edit_distance(first, second) / (len(first) + len(second)) if first or second else 0.0


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions; one step per token of `second` (Hyyrö's bit-parallel form of Myers)."""
    if not first:
        return len(second)
    places: dict[int, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    everywhere, last = (1 << len(first)) - 1, 1 << len(first) - 1
    # Bits: where the distance rises or falls by one from one row to the next, in the current column.
    rises, falls, distance = everywhere, 0, len(first)
    for token in second:
        equal = places.get(token, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = falls | ~(diagonal | rises) & everywhere, rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & everywhere, down << 1 & everywhere
        rises, falls = down | ~(diagonal | up) & everywhere, up & diagonal
    return distance
