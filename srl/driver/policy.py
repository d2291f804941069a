"""One update of the policy: graded trajectories to rewards, advantages or pairs, examples, optimizer steps.

Which of them is the recipe's choice: `rl.filters`, `credit`, `objective`. Nothing here knows where trajectories come from.
"""

import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from ray.util.placement_group import PlacementGroup

from srl.config import Config
from srl.config.names import look_up
from srl.learner.batch import Example, policy_example
from srl.learner.correction import corrected
from srl.learner.credit import Rewards, TokenArrays, assign_credit, kl_weights
from srl.learner.group import LearnerGroup
from srl.learner.losses import Loss, sft_loss
from srl.learner.losses.policy import KL_ESTIMATES, policy_loss, value_loss
from srl.learner.losses.preference import dpo_loss, kto_loss
from srl.learner.schedule import adapted
from srl.pipelines.filters import FILTERS, apply_filters, groups, solved
from srl.pipelines.pairs import PAIR_RULES, build_pairs
from srl.reward.consistency import rank_consistency
from srl.reward.shaping import REWARDS, alone_trajectories, learnable, self_aligned_rewards, turn_rewards
from srl.trajectory import Outcome, Trajectory

Metrics = dict[str, float]
Groups = list[list[Example]]  # examples that stay in one mini-batch
OWN_EXAMPLES = ("sft", "dpo", "kto")  # losses whose examples have no advantages; any other is a policy gradient
SELF_ALIGNED = "self_aligned"  # the one reward that needs the policy: it scores the answers once more, without the question


class PolicyUpdate:
    """The learners and what lasts from step to step: the frozen models, the critic, the adapted weight of the KL."""

    def __init__(self, config: Config, start: str, opening: list[int], shared: PlacementGroup | None = None):
        """`start` is the folder of policy and reference; `opening` are the prompt tokens of an empty question.

        `shared` is room with the engines; a critic has its own.
        """
        rl = config.rl
        self.config, self.opening = config, opening
        self.rules, self.filters, self.pair_rules = recipe_functions(config)
        reference = start if config.objective.needs_reference else None
        self.learners = LearnerGroup(config, start, reference, rl.weight_decay, rl.gradient_clip, shared=shared)
        self.critic = None
        if config.credit.needs_critic:
            self.critic = LearnerGroup(config, start, None, rl.weight_decay, rl.gradient_clip, critic=True)
        self.kl_factor = 1.0
        self.previous: int | None = None  # the step whose policy, before its update, is kept for CREAM
        self.trained: set[str] = set()  # trajectories of the last step that a loss saw

    @property
    def first_step(self) -> int:
        """Of the policy: in those before, the critic learns alone."""
        return self.config.critic.warmup_steps if self.critic else 0

    def step(self, trajectories: list[Trajectory], step: int, learning_rate: float, off_policy: bool = False) -> Metrics:
        """Set every trajectory's reward and train on them; metrics are means over the optimizer steps.

        `off_policy`: what sampled them is not quite the policy that is trained, and a policy loss has to make up for it.
        """
        by_id = dict(zip((trajectory.id for trajectory in trajectories), self.reward(trajectories), strict=True))
        kept, metrics = apply_filters(trajectories, {"empty": with_tokens, "grader_timeout": judged_in_time, **self.filters})
        rewards = [by_id[trajectory.id] for trajectory in kept]
        examples, loss, found = self.examples(kept, rewards)
        if off_policy and self.config.objective.loss not in OWN_EXAMPLES:
            examples, gaps = self.importance_weighted(examples)
            found |= gaps
        self.trained = {example.id for group in examples for example in group}
        if self.config.objective.consistency:
            self.learners.freeze("previous")
            self.previous = step
        updates = self.train(examples, loss, step, learning_rate)
        every = self.config.rl.reference_every
        if every and (step + 1) % every == 0:
            self.learners.freeze("reference")
        means = mean_metrics(updates)
        if self.config.objective.kl_target and "kl" in means:
            self.kl_factor = adapted(self.kl_factor, means["kl"], self.config.objective.kl_target)
        steps = len(updates) if step >= self.first_step else 0
        return {**metrics, **found, "kl_factor": self.kl_factor, "optimizer_steps": steps, **means}

    def train(self, examples: Groups, loss: Loss, step: int, learning_rate: float) -> list[Metrics]:
        """Metrics of each optimizer step; where there is a critic it takes one on the same examples before the policy."""
        settings, updates = self.config.rl, []
        for _ in range(settings.epochs):
            for batch in mini_batches(examples, settings.mini_batches):
                found: Metrics = {}
                if self.critic:
                    rate = self.config.critic.learning_rate
                    learned = self.critic.train(batch, functools.partial(value_loss, clip=self.config.critic.clip), rate)
                    found = {
                        f"critic_{name}": value for name, value in learned.items() if name not in ("entropy", "trained_tokens")
                    }
                if step >= self.first_step:
                    found |= self.learners.train(batch, loss, learning_rate)
                if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
                    raise FloatingPointError(f"RL step {step}, optimizer step {len(updates)}: {', '.join(wrong)} not finite")
                updates.append(found)
        return updates

    def importance_weighted(self, examples: Groups) -> tuple[Groups, Metrics]:
        """Importance weights from the sampling policy to the current one; examples of which nothing is left are gone."""
        flat = [example for group in examples for example in group]
        if not flat:
            return examples, {}
        settings = self.config.rl
        weighted, gaps = corrected(flat, self.learners.logprobs(flat), settings.importance_cap, settings.importance)
        by_id = {example.id: example for example in weighted}
        kept = [[by_id[example.id] for example in group if example.id in by_id] for group in examples]
        return kept, {**gaps, "sampler_dropped": len(flat) - len(weighted)}

    def save_state(self, folder: Path) -> None:
        for name, group in self.learner_groups().items():
            (folder / name).mkdir()
            group.save_state(folder / name)

    def load_state(self, folder: Path) -> None:
        for name, group in self.learner_groups().items():
            group.load_state(folder / name)

    def to_record(self) -> dict[str, Any]:
        return {"kl_factor": self.kl_factor, "previous": self.previous}

    def from_record(self, record: dict[str, Any]) -> None:
        self.kl_factor, self.previous = record["kl_factor"], record["previous"]

    def rebuild(self) -> None:
        """New learners in the place of lost ones; `load_state` must follow."""
        for group in self.learner_groups().values():
            group.rebuild()

    def learner_groups(self) -> dict[str, LearnerGroup]:
        return {"policy": self.learners} | ({"critic": self.critic} if self.critic else {})

    def close(self) -> None:
        self.learners.close()
        if self.critic:
            self.critic.close()

    def reward(self, trajectories: list[Trajectory]) -> Rewards:
        """The rewards of all turns; each trajectory's `reward` becomes their sum."""
        rewards = [turn_rewards(trajectory, self.rules) for trajectory in trajectories]
        if weight := self.config.credit.rewards.get(SELF_ALIGNED):
            alone = [example for t in trajectories for example in alone_trajectories(t, self.opening)]
            scored = self.learners.logprobs([policy_example(item, 0.0) for item in alone])
            for trajectory, own in zip(trajectories, rewards, strict=True):
                for index, value in self_aligned_rewards(trajectory, scored).items():
                    own[index] += weight * value
        for trajectory, own in zip(trajectories, rewards, strict=True):
            trajectory.reward = sum(own)
        return rewards

    def has_signal(self, group: Sequence[Trajectory]) -> bool:
        """Whether the rewards of its members differ."""
        if SELF_ALIGNED in self.config.credit.rewards:
            return True  # no two of them are the same
        totals = [sum(turn_rewards(trajectory, self.rules)) for trajectory in group]
        return not math.isclose(min(totals), max(totals), abs_tol=1e-9)

    def examples(self, trajectories: list[Trajectory], rewards: Rewards) -> tuple[Groups, Loss, Metrics]:
        """What is trained on, by prompt, the loss and what is to be told of them."""
        match self.config.objective.loss:
            case "sft":
                return self.demonstrations(trajectories)
            case "dpo":
                return self.preferences(trajectories)
            case "kto":
                return self.judgements(trajectories)
        return self.policy_gradient(trajectories, rewards)

    def policy_gradient(self, trajectories: list[Trajectory], rewards: Rewards) -> tuple[Groups, Loss, Metrics]:
        """An advantage for every sampled token. Groups without signal are counted, and left out where nothing else is learned."""
        objective = self.config.objective
        kl = [self.kl_factor * kl_weights(t, objective.kl, objective.kl_by) for t in trajectories]
        penalties = None
        if objective.kl_in == "reward" and objective.needs_reference:
            penalties = [w * kl_t for w, kl_t in zip(kl, self.divergences(trajectories, objective.kl_estimate), strict=True)]
            kl = [np.zeros_like(weights_t) for weights_t in kl]
        values = self.values(trajectories) if self.critic else None
        credit = self.config.credit
        advantages, returns = assign_credit(credit, self.config.critic, trajectories, rewards, penalties, values)
        by_group: dict[str, list[Example]] = {}
        with_signal, learned = set(), set()
        for index, trajectory in enumerate(trajectories):
            columns = {"kl": kl[index]}
            if values:
                columns |= {"values": values[index], "returns": returns[index]}
            example = policy_example(trajectory, advantages[index], weight=self.weight(trajectory), **columns)
            by_group.setdefault(trajectory.prompt_id, []).append(example)
            if np.any(advantages[index]):
                with_signal.add(trajectory.prompt_id)
            if np.any(advantages[index]) or np.any(kl[index]) or objective.entropy:
                learned.add(trajectory.prompt_id)
        found = {"groups": len(by_group), "groups_without_signal": len(by_group.keys() - with_signal)}
        return [examples for prompt, examples in by_group.items() if prompt in learned], self.policy_loss(), found

    def demonstrations(self, trajectories: list[Trajectory]) -> tuple[Groups, Loss, Metrics]:
        """RAFT: what passed the filters is imitated, but for wrong answers and wrong verdicts (equation 1)."""
        by_group: dict[str, list[Example]] = {}
        for trajectory in trajectories:
            turns = zip(trajectory.turns, learnable(trajectory), strict=True)
            mask = np.array([float(learn) for turn, learn in turns if turn.sampled for _ in turn.token_ids])
            if mask.any():
                weights = mask if self.config.objective.average == "token" else mask / mask.sum()
                by_group.setdefault(trajectory.prompt_id, []).append(policy_example(trajectory, 0.0, weights=weights))
        examples = list(by_group.values())
        return examples, sft_loss, {"demonstrations": sum(map(len, examples))}

    def preferences(self, trajectories: list[Trajectory]) -> tuple[Groups, Loss, Metrics]:
        """Multi-turn DPO: pairs from the trajectories of each prompt."""
        objective = self.config.objective
        pairs = build_pairs(trajectories, self.pair_rules, objective.share_attempt, self.config.run.seed)
        smoothing = objective.label_smoothing
        found: Metrics = {"pairs": len(pairs)}
        for name in self.pair_rules:
            found[f"pairs_{name}"] = sum(pair.rule == name for pair in pairs)
        if objective.consistency and self.previous is not None:
            found["consistency"] = consistency = self.consistency(trajectories)
            smoothing = 1 - consistency
        examples = []
        for number, pair in enumerate(pairs):
            sides = ((pair.winner, 1.0), (pair.loser, -1.0))
            # A pair weighs 1, half of it each trajectory, so that the denominator of a step is its number of pairs.
            examples.append(
                [policy_example(t, sign, weight=0.5 / t.sampled_tokens(), unit=f"pair {number}") for t, sign in sides]
            )
        loss = functools.partial(dpo_loss, eta=objective.beta, label_smoothing=smoothing, nll=objective.nll)
        return examples, loss, found

    def judgements(self, trajectories: list[Trajectory]) -> tuple[Groups, Loss, Metrics]:
        """Multi-turn KTO: right and wrong trajectories one by one."""
        beta = self.config.objective.beta
        z0 = max(0.0, beta * float(np.mean([kl_t.sum() for kl_t in self.divergences(trajectories, "k1")] or [0.0])))
        examples = [
            [policy_example(t, 1.0 if solved(t) else -1.0, weight=1 / t.sampled_tokens()) for t in members]
            for members in groups(trajectories).values()
        ]
        return examples, functools.partial(kto_loss, eta=beta, z0=z0), {"kto_z0": z0, "right": sum(map(solved, trajectories))}

    def policy_loss(self) -> Loss:
        objective = self.config.objective
        chosen = look_up("objective.loss", objective.loss, {"policy": policy_loss})
        if chosen is not policy_loss:
            # By value: the learners' processes and machines need not find the user's module.
            cloudpickle.register_pickle_by_value(sys.modules[chosen.__module__])
            return chosen
        return functools.partial(
            policy_loss,
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            dual_clip=objective.dual_clip,
            ratio=objective.ratio,
            kl_estimate="k3" if objective.kl_in == "reward" else objective.kl_estimate,
            entropy=objective.entropy,
        )

    def weight(self, trajectory: Trajectory) -> float:
        """Of each sampled token: 1, or such that every trajectory weighs the same."""
        return 1.0 if self.config.objective.average == "token" else 1 / trajectory.sampled_tokens()

    def values(self, trajectories: Sequence[Trajectory]) -> TokenArrays:
        scored = self.critic.values([policy_example(trajectory, 0.0) for trajectory in trajectories])
        return [np.array(scored[trajectory.id]) for trajectory in trajectories]

    def divergences(self, trajectories: Sequence[Trajectory], estimate: str) -> TokenArrays:
        """KL estimates (nats) of the sampling policy to the reference, per sampled token."""
        scored = self.learners.logprobs([policy_example(trajectory, 0.0) for trajectory in trajectories], "reference")
        return [
            KL_ESTIMATES[estimate](torch.tensor(logprobs(trajectory)), torch.tensor(scored[trajectory.id])).numpy()
            for trajectory in trajectories
        ]

    def consistency(self, trajectories: Sequence[Trajectory]) -> float:
        """CREAM's C: how alike this policy and that of the step before rank each group by log-ratio to the reference.

        The policy of the first step is the reference: it ranks by log-probability per token, as in CREAM's first iteration.
        """
        examples = [policy_example(trajectory, 0.0) for trajectory in trajectories]
        reference, previous = (self.learners.logprobs(examples, name) for name in ("reference", "previous"))
        now = {t.id: sum(logprobs(t)) - sum(reference[t.id]) for t in trajectories}
        before = {t.id: sum(previous[t.id]) - sum(reference[t.id]) for t in trajectories}
        if self.previous == 0:
            before = {name: sum(values) / len(values) for name, values in previous.items()}
        ids = [[trajectory.id for trajectory in members] for members in groups(trajectories).values()]
        return rank_consistency([([now[i] for i in group], [before[i] for i in group]) for group in ids])


def with_tokens(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those in which anything was sampled: a prompt that was too long, or whose rollout failed, teaches nothing."""
    return [trajectory for trajectory in trajectories if trajectory.sampled_tokens()]


def judged_in_time(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those whose answers the grader got done with: of the others nobody knows whether they are right, as in stage 1."""
    return [
        trajectory for trajectory in trajectories if not any(turn.outcome is Outcome.TIMEOUT for turn in trajectory.answers())
    ]


def logprobs(trajectory: Trajectory) -> list[float]:
    return [value for turn in trajectory.turns for value in turn.logprobs]


def recipe_functions(config: Config) -> tuple[dict, dict, dict]:
    """Reward rules with weights, filters and pair rules that the configuration names. Raises ConfigError for an unknown one."""
    named = {name: weight for name, weight in config.credit.rewards.items() if name != SELF_ALIGNED}
    rules = {look_up("credit.rewards", name, REWARDS): weight for name, weight in named.items()}
    filters = {name: look_up("rl.filters", name, FILTERS) for name in config.rl.filters}
    pairs = {name: look_up("objective.pairs", name, PAIR_RULES) for name in config.objective.pairs}
    look_up("objective.loss", config.objective.loss, dict.fromkeys(("policy", *OWN_EXAMPLES)))
    return rules, filters, pairs


def mini_batches(groups: Groups, parts: int) -> Groups:
    """Whole groups dealt out into at most `parts` mini-batches; empty ones are left out."""
    batches = [[example for examples in groups[part::parts] for example in examples] for part in range(parts)]
    return [batch for batch in batches if batch]


def mean_metrics(updates: list[Metrics]) -> Metrics:
    names = dict.fromkeys(name for update in updates for name in update)
    found = {name: [update[name] for update in updates if name in update] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
