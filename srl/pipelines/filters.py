"""Which of the sampled trajectories are trained on: pure functions, graded trajectories in, some of them out."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from srl.reward.shaping import agrees, is_right, walk
from srl.trajectory import Trajectory, TurnKind

Filter = Callable[[Sequence[Trajectory]], list[Trajectory]]


def groups(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories by prompt, in order of first appearance."""
    found: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        found[trajectory.prompt_id].append(trajectory)
    return found


def solved(trajectory: Trajectory) -> bool:
    final = trajectory.final()
    return final is not None and is_right(trajectory, final)


def first_right(trajectory: Trajectory) -> bool:
    answers = trajectory.answers()
    return bool(answers) and is_right(trajectory, answers[0])


def final_right(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """RAFT: the final answer is right."""
    return [trajectory for trajectory in trajectories if solved(trajectory)]


def wrong_to_right(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """STaR for self-correction: a wrong first attempt and a right final answer."""
    return [trajectory for trajectory in trajectories if solved(trajectory) and not first_right(trajectory)]


def verdicts_agree(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Every verdict says what the grader says, and there is one."""
    return [
        trajectory
        for trajectory in trajectories
        if trajectory.verdicts()
        and all(agrees(turn.verdict, right) for turn, right, _ in walk(trajectory) if turn.kind is TurnKind.VERDICT)
    ]


def untruncated(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Overlong filtering: what ran out of tokens says nothing about the policy's wishes."""
    return [trajectory for trajectory in trajectories if not trajectory.truncated]


def mixed_groups(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Prompts with right and wrong final answers."""
    return difficulty(trajectories, 1e-9, 1 - 1e-9)


def medium_groups(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Prompts of which 10 to 70 % of the final answers are right (S2R)."""
    return difficulty(trajectories, 0.1, 0.7)


def difficulty(trajectories: Sequence[Trajectory], low: float, high: float) -> list[Trajectory]:
    """All trajectories of the prompts whose share of right final answers is in low..high."""
    shares = {prompt: sum(map(solved, members)) / len(members) for prompt, members in groups(trajectories).items()}
    return [trajectory for trajectory in trajectories if low <= shares[trajectory.prompt_id] <= high]


def best_of_group(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectory with the highest reward of each prompt, the first among equals."""
    return [max(members, key=lambda trajectory: trajectory.reward) for members in groups(trajectories).values()]


def balanced(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """As many with a right as with a wrong first attempt, those that come first in an order that depends on their ids only."""
    sides: dict[bool, list[Trajectory]] = {True: [], False: []}
    for trajectory in sorted(trajectories, key=lambda trajectory: random.Random(trajectory.id).random()):
        sides[first_right(trajectory)].append(trajectory)
    count = min(map(len, sides.values()))
    kept = {trajectory.id for side in sides.values() for trajectory in side[:count]}
    return [trajectory for trajectory in trajectories if trajectory.id in kept]


FILTERS: dict[str, Filter] = {
    rule.__name__: rule
    for rule in (
        final_right, wrong_to_right, verdicts_agree, untruncated, mixed_groups, medium_groups, best_of_group, balanced,
    )
}  # fmt: skip


def apply_filters(trajectories: list[Trajectory], filters: dict[str, Filter]) -> tuple[list[Trajectory], dict[str, int]]:
    """What passes all filters, one after the other, and how many each one dropped, as `dropped_<name>`."""
    dropped = {}
    for name, rule in filters.items():
        kept = rule(trajectories)
        dropped[f"dropped_{name}"] = len(trajectories) - len(kept)
        trajectories = kept
    return trajectories, dropped
