"""How sure a number is: bootstrap over problems, McNemar's test, paired comparison. Pure functions.

Trajectories of one problem are not independent, so problems are what is resampled, never trajectories.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of `counts` (shape (problems, k)) over problems drawn with replacement; shape (resamples, k)."""
    if not len(counts):
        raise ValueError("bootstrap over no problems")
    rng = np.random.default_rng(seed)
    return np.stack([counts[rng.integers(len(counts), size=len(counts))].sum(axis=0) for _ in range(resamples)])


def interval(values: np.ndarray) -> list[float] | None:
    """2.5th and 97.5th percentile, two decimals; None if the statistic is undefined (nan) in any resample."""
    if np.isnan(values).any():
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return [round(float(low), 2), round(float(high), 2)]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """100 * above / below; nan where `below` is 0."""
    return 100 * np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test: were `gained` (wrong, then right) and `lost` (right, then wrong) equally likely?

    Under the null each change is a fair coin: p = min(1, 2 P(X <= min(gained, lost))), X ~ Binomial(gained + lost, 1/2).
    """
    changes = gained + lost
    tail = sum(math.comb(changes, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changes)


def compare_paired(
    first: dict[str, tuple[float, int]], second: dict[str, tuple[float, int]], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Second minus first, on the problems that both have.

    Values are (right answers, answers) per problem id. `difference` is in points of mean accuracy over problems with its 95 %
    interval from resampled problems; `better`, `worse` count problems on which one has the larger share of right answers, `p` is
    the exact sign test over them (McNemar's when there is one answer per problem). Raises ValueError without common problems.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("the two evaluations have no problem in common")
    gaps = np.array([[100 * (second[key][0] / second[key][1] - first[key][0] / first[key][1])] for key in common])
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return {
        "problems": len(common),
        "difference": round(float(gaps.mean()), 2),
        "ci95": interval(bootstrap(gaps, resamples, seed)[:, 0] / len(common)),
        "better": better,
        "worse": worse,
        "p": mcnemar(better, worse),
    }
