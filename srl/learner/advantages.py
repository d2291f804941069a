"""Returns to advantages: pure functions.

The first four compare returns of turns within groups; `token_advantages` works on tokens, with a critic's values or zeros.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

Values = Sequence[float]
Keys = Sequence[Hashable]


def grpo(returns: Values, groups: Keys, owners: Keys) -> list[float]:
    """Return minus the mean of its group, divided by the group's (population) standard deviation."""
    return centred(returns, groups, owners, normalise_std=True)


def dr_grpo(returns: Values, groups: Keys, owners: Keys) -> list[float]:
    """Return minus the mean of its group."""
    return centred(returns, groups, owners, normalise_std=False)


def rloo(returns: Values, groups: Keys, owners: Keys) -> list[float]:
    """Return minus the mean over the *other* trajectories of its group; 0 for a trajectory that is alone in its group."""
    means = group_means(returns, groups, owners)
    totals = {group: sum(by_owner.values()) for group, by_owner in means.items()}
    advantages = []
    for value, group, owner in zip(returns, groups, owners, strict=True):
        others = len(means[group]) - 1
        advantages.append(value - (totals[group] - means[group][owner]) / others if others else 0.0)
    return advantages


def reinforce(returns: Values, groups: Keys, owners: Keys) -> list[float]:
    """The return itself: no baseline."""
    return list(returns)


ESTIMATORS: dict[str, Callable[[Values, Keys, Keys], list[float]]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce": reinforce,
}


def centred(returns: Values, groups: Keys, owners: Keys, normalise_std: bool) -> list[float]:
    """GRPO and Dr. GRPO. A trajectory (owner) counts once in a group, however many of its turns are in it, with their mean.

    A group whose returns are all equal gets zeros: it has no signal.
    """
    statistics = {}
    for group, by_owner in group_means(returns, groups, owners).items():
        values = np.array(list(by_owner.values()))
        statistics[group] = float(values.mean()), float(values.std())
    advantages = []
    for value, group in zip(returns, groups, strict=True):
        mean, deviation = statistics[group]
        scale = deviation if normalise_std else 1.0
        advantages.append((value - mean) / scale if deviation > 1e-8 else 0.0)
    return advantages


def group_means(returns: Values, groups: Keys, owners: Keys) -> dict[Hashable, dict[Hashable, float]]:
    """Group -> owner -> mean of the owner's returns in it."""
    members: dict[Hashable, dict[Hashable, list[float]]] = defaultdict(lambda: defaultdict(list))
    for value, group, owner in zip(returns, groups, owners, strict=True):
        members[group][owner].append(value)
    return {
        group: {owner: sum(values) / len(values) for owner, values in by_owner.items()} for group, by_owner in members.items()
    }


def whiten(advantages: Sequence[np.ndarray], parts: Keys) -> list[np.ndarray]:
    """Mean 0 and variance 1 over all tokens of a part; each array [tokens] belongs wholly to one part.

    A part whose tokens all have the same advantage becomes zeros.
    """
    members: dict[Hashable, list[np.ndarray]] = defaultdict(list)
    for values, part in zip(advantages, parts, strict=True):
        members[part].append(values)
    statistics = {}
    for part, arrays in members.items():
        tokens = np.concatenate(arrays)
        mean, deviation = (float(tokens.mean()), float(tokens.std())) if len(tokens) else (0.0, 0.0)
        statistics[part] = mean, deviation if deviation > 1e-8 else 1.0
    return [(values - statistics[part][0]) / statistics[part][1] for values, part in zip(advantages, parts, strict=True)]


def token_advantages(
    rewards_t: np.ndarray,
    values_t: np.ndarray,
    turn_ends_t: np.ndarray,
    *,
    discount: float,
    trace: float,
    turn_discount: float,
) -> np.ndarray:
    """Generalised advantage estimation over the tokens that the policy wrote, all arrays [written tokens of a trajectory].

    What others said between two turns is not in the arrays, so nothing decays or is bootstrapped through it. `discount` and
    `trace` (lambda) hold between tokens of a turn; from a turn's last token to the next turn's first it is `turn_discount`
    and `trace`: 0 keeps turns apart (PAG). With values 0, discount 1 and trace 1 this is the sum of rewards to come.
    """
    advantages, advantage, value_ahead = [], 0.0, 0.0
    # Plain floats: indexing arrays one element at a time is several times slower.
    columns = (column[::-1].tolist() for column in (rewards_t, values_t, turn_ends_t))
    for reward, value, turn_end in zip(*columns, strict=True):
        ahead = turn_discount if turn_end else discount
        advantage = reward + ahead * value_ahead - value + ahead * trace * advantage
        advantages.append(advantage)
        value_ahead = value
    return np.array(advantages[::-1])
