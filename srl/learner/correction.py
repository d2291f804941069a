"""Tokens that another policy sampled than the one being trained: how far the two are apart, and what makes up for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from srl.config.rl import Importance
from srl.learner.batch import Example
from srl.trajectory import Trajectory

LARGEST = 50.0  # log-ratio, nats: e to the power of it is still a number


def corrected(
    examples: Sequence[Example], current: Mapping[str, Sequence[float]], cap: float, kind: Importance = "token_truncate"
) -> tuple[list[Example], dict[str, float]]:
    """Importance sampling, and what it did. Examples of which no token is left are left out.

    `current` has the log-probabilities of every example's trained tokens under the policy about to be trained. They become
    `old_logprobs`, from which the clipped ratio then starts at 1, and advantages are multiplied by the importance weight
    w = p_current / p_sampled, a constant for the gradient: the token's own, or ("sequence_...") the geometric mean of its
    sequence's, for all of its tokens. "..._truncate" takes min(cap, w) (TIS), "..._mask" leaves out what is not between 1 / cap
    and cap (by token: IcePop). A token whose w is not a number is left out in any case.

    Metrics: `sampler_gap` of |log p_current - log p_sampled| in nats and `sampler_ratio` of w before all this, means over the
    tokens that have one; the shares `sampler_truncated` and `sampler_masked` of all tokens; and `sampler_gap_max`.
    """
    level, _, bound = kind.partition("_")
    gaps, ratios, tokens, truncated, masked, result = [], [], 0, 0, 0, []
    for example in examples:
        weights, advantages, old = list(example.weights), list(example.advantages), list(example.old_logprobs)
        places, now = trained_positions(example), current[example.id]
        log_ratios = [new - old[position] for position, new in zip(places, now, strict=True)]
        ratios_t = importance_ratios(log_ratios, level)
        for position, new, ratio in zip(places, now, ratios_t, strict=True):
            if math.isnan(ratio) or (bound == "mask" and not 1 / cap <= ratio <= cap):
                weights[position], masked = 0.0, masked + 1
                continue
            truncated += ratio > cap
            advantages[position] *= min(cap, ratio)
            old[position] = new
        gaps += [abs(value) for value in log_ratios if math.isfinite(value)]
        ratios += [ratio for ratio in ratios_t if not math.isnan(ratio)]
        tokens += len(places)
        changed = replace(example, weights=weights, advantages=advantages, old_logprobs=old)
        result += [changed] if trained_positions(changed) else []
    metrics = {
        "sampler_gap": sum(gaps) / max(1, len(gaps)),
        "sampler_gap_max": max(gaps, default=0.0),
        "sampler_ratio": sum(ratios) / max(1, len(ratios)),
        "sampler_truncated": truncated / max(1, tokens),
        "sampler_masked": masked / max(1, tokens),
    }
    return result, metrics


def importance_ratios(log_ratios: Sequence[float], level: str) -> list[float]:
    """Of each token of a sequence: p_current / p_sampled, or for level "sequence" their geometric mean; nan where either is 0."""
    finite = [value for value in log_ratios if math.isfinite(value)]
    if level == "sequence" and finite:
        mean = sum(finite) / len(finite)
        log_ratios = [mean if math.isfinite(value) else value for value in log_ratios]
    return [math.exp(min(value, LARGEST)) if math.isfinite(value) else math.nan for value in log_ratios]


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
