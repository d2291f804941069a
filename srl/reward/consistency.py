"""CREAM: how much two models agree on which of a prompt's responses are better. Pure functions."""

from collections.abc import Sequence


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a, -1..1: (concordant - discordant) / all pairs; a tie in either is neither. 0 for fewer than two."""
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    score = 0
    for i, j in pairs:
        product = (first[i] - first[j]) * (second[i] - second[j])
        score += (product > 0) - (product < 0)
    return score / len(pairs) if pairs else 0.0


def rank_consistency(groups: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """CREAM's C in 0..1: the mean of (tau + 1) / 2 over prompts with at least two responses; 1 if there is none.

    DPO with label smoothing 1 - C is CREAM's loss.
    """
    values = [(kendall_tau(first, second) + 1) / 2 for first, second in groups if len(first) > 1]
    return sum(values) / len(values) if values else 1.0
