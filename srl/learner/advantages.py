"""Rewards to advantages: pure functions."""

from collections import defaultdict
from collections.abc import Hashable, Sequence


def group_advantages(rewards: Sequence[float], groups: Sequence[Hashable], normalise_std: bool) -> list[float]:
    """GRPO: reward minus the mean of its group, divided by the group's (population) standard deviation if asked.

    A group whose rewards are all equal gets zeros: it has no signal.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for reward, group in zip(rewards, groups, strict=True):
        members[group].append(reward)
    statistics = {}
    for group, values in members.items():
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        statistics[group] = mean, deviation
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        mean, deviation = statistics[group]
        scale = deviation if normalise_std else 1.0
        advantages.append((reward - mean) / scale if deviation > 1e-8 else 0.0)
    return advantages
