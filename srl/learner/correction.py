"""Tokens that another policy sampled than the one being trained: how far the two are apart, and weights that make up for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from srl.learner.batch import Example
from srl.trajectory import Trajectory


def corrected(
    examples: Sequence[Example], current: Mapping[str, Sequence[float]], cap: float
) -> tuple[list[Example], dict[str, float]]:
    """Truncated importance sampling, token by token, and what it did.

    `current` has the log-probabilities of every example's trained tokens under the policy about to be trained. They become
    `old_logprobs`, from which the clipped ratio then starts at 1, and advantages are multiplied by
    w = min(cap, p_current / p_sampled), which is a constant for the gradient. A token whose w is not a number has weight 0 in
    the loss.

    Metrics are means over the tokens left: `sampler_gap` of |log p_current - log p_sampled| in nats, `sampler_ratio` of the ratio
    before truncation; shares of all: `sampler_truncated` and `sampler_masked`; and `sampler_gap_max`.
    """
    gaps, ratios, truncated, masked, result = [], [], 0, 0, []
    for example in examples:
        weights, advantages, old = list(example.weights), list(example.advantages), list(example.old_logprobs)
        for position, now in zip(trained_positions(example), current[example.id], strict=True):
            gap = now - old[position]
            if not math.isfinite(gap):
                weights[position], masked = 0.0, masked + 1
                continue
            ratio = math.exp(min(gap, 50.0))
            gaps.append(abs(gap))
            ratios.append(ratio)
            truncated += ratio > cap
            advantages[position] *= min(cap, ratio)
            old[position] = now
        result.append(replace(example, weights=weights, advantages=advantages, old_logprobs=old))
    count = max(1, len(gaps) + masked)
    metrics = {
        "sampler_gap": sum(gaps) / max(1, len(gaps)),
        "sampler_gap_max": max(gaps, default=0.0),
        "sampler_ratio": sum(ratios) / max(1, len(ratios)),
        "sampler_truncated": truncated / count,
        "sampler_masked": masked / count,
    }
    return result, metrics


def trained_positions(example: Example) -> list[int]:
    """Where `collate` finds trained tokens: those with weight, without the first of the sequence."""
    return [position for position, weight in enumerate(example.weights) if weight > 0 and position > 0]


def policy_age(trajectories: Sequence[Trajectory], age: Mapping[int, int]) -> dict[str, float]:
    """How many updates of the policy ago tokens were sampled: mean over tokens, oldest. `age` has that of each weight version;
    one that is not in it, of a recorded trajectory, counts as 1.
    """
    ages = [(age.get(turn.weight_version, 1), len(turn.token_ids)) for t in trajectories for turn in t.turns if turn.sampled]
    tokens = sum(count for _, count in ages)
    return {
        "policy_age": sum(age * count for age, count in ages) / max(1, tokens),
        "policy_age_max": float(max((age for age, _ in ages), default=0)),
    }
