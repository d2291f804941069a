"""Further prompts made on-policy from this step's attempts: to be judged, or to go on after. Pure functions.

The attempt is given, not sampled: it carries no log-probabilities, so nothing trains it and no reward is paid for it.
"""

import dataclasses
import random
from collections.abc import Sequence

from srl.pipelines.filters import first_right, mixed_groups
from srl.trajectory import Trajectory, Turn


def given(turn: Turn) -> Turn:
    return dataclasses.replace(turn, logprobs=[], loss_weight=0.0)


def from_attempt(trajectory: Trajectory, purpose: str, members: int) -> list[Trajectory]:
    """A new group of `members` that begin with the first attempt of `trajectory`."""
    name = f"{trajectory.id}+{purpose}"
    attempt = given(trajectory.answers()[0])
    return [
        dataclasses.replace(
            trajectory,
            id=f"{name}/{member}",
            prompt_id=name,
            turns=[dataclasses.replace(attempt)],
            stop_reason=None,
            reward=None,
        )
        for member in range(members)
    ]


def verification_groups(trajectories: Sequence[Trajectory], count: int, members: int) -> list[Trajectory]:
    """RISE-online, L2SV: at most `count` attempts to be judged, half of them right and half wrong where there are enough."""
    return [t for attempt in balanced_attempts(trajectories, count) for t in from_attempt(attempt, "verify", members)]


def restart_groups(trajectories: Sequence[Trajectory], count: int, members: int) -> list[Trajectory]:
    """Satori: go on after a right or a wrong attempt, from prompts that have both.

    Only after attempts that a verdict followed: the others end with their message, and nothing is to be written after its end.
    """
    mixed = [trajectory for trajectory in mixed_groups(trajectories) if trajectory.verdicts()]
    return [t for attempt in balanced_attempts(mixed, count) for t in from_attempt(attempt, "restart", members)]


def balanced_attempts(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """Right and wrong first attempts in turn, at most one of each per prompt, until `count` or one kind is used up."""
    sides: dict[bool, list[Trajectory]] = {True: [], False: []}
    taken = set()
    for trajectory in sorted(trajectories, key=lambda item: random.Random(item.id).random()):
        if trajectory.answers():
            side = first_right(trajectory)
            if (trajectory.prompt_id, side) not in taken:
                taken.add((trajectory.prompt_id, side))
                sides[side].append(trajectory)
    pairs = zip(sides[True], sides[False], strict=False)
    return [trajectory for pair in pairs for trajectory in pair][:count]
