"""One update of the policy: graded trajectories to rewards, advantages, examples, optimizer steps."""

import functools
from collections.abc import Sequence

from srl.config import RlConfig
from srl.learner.advantages import group_advantages
from srl.learner.batch import Example, policy_example
from srl.learner.group import LearnerGroup
from srl.learner.losses import policy_loss
from srl.reward.rules import final_outcome
from srl.trajectory import Trajectory


def reward(trajectories: Sequence[Trajectory]) -> None:
    """Set the reward of graded trajectories."""
    for trajectory in trajectories:
        trajectory.reward = final_outcome(trajectory)


def update_policy(
    settings: RlConfig, learners: LearnerGroup, trajectories: list[Trajectory], learning_rate: float
) -> tuple[list[dict[str, float]], int]:
    """The metrics of each optimizer step, and how many groups had no signal."""
    loss = functools.partial(policy_loss, clip_low=settings.clip_low, clip_high=settings.clip_high, kl=settings.kl)
    mini_batches, silent = policy_batches(trajectories, settings.normalise_std, settings.mini_batches)
    return [learners.train(examples, loss, learning_rate) for examples in mini_batches], silent


def policy_batches(trajectories: list[Trajectory], normalise_std: bool, mini_batches: int) -> tuple[list[list[Example]], int]:
    """Training examples in mini-batches of whole groups, and how many groups were left out: their rewards are all equal."""
    groups = [trajectory.prompt_id for trajectory in trajectories]
    advantages = group_advantages([trajectory.reward for trajectory in trajectories], groups, normalise_std)
    by_group: dict[str, list[Example]] = {}
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        by_group.setdefault(trajectory.prompt_id, [])
        if advantage != 0.0:
            by_group[trajectory.prompt_id].append(policy_example(trajectory, advantage))
    speaking = [examples for examples in by_group.values() if examples]
    batches = [[example for examples in speaking[part::mini_batches] for example in examples] for part in range(mini_batches)]
    return [batch for batch in batches if batch], len(by_group) - len(speaking)
