"""From the rewards of turns to an advantage for every sampled token: discount across turns, who is compared with whom,
normalisation. Pure functions.

A turn that was said rather than sampled has no reward and no return: it appears in lists over turns with 0.0.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from srl.config import CreditConfig, CriticConfig
from srl.learner.advantages import ESTIMATORS, token_advantages, whiten
from srl.trajectory import Trajectory, Turn, TurnKind

Rewards = list[list[float]]  # [trajectory][turn]
TokenArrays = list[np.ndarray]  # [trajectory][sampled token]

LEAST_HISTORY = 10  # S2R: a baseline over fewer actions with the same history is too noisy


def turn_returns(trajectory: Trajectory, rewards: Sequence[float], discount: float) -> list[float]:
    """Reward of each sampled turn plus `discount` times the return of the next one; 0 leaves every turn its own reward."""
    returns, ahead = [0.0] * len(rewards), 0.0
    for index in range(len(rewards) - 1, -1, -1):
        if trajectory.turns[index].sampled:
            ahead = returns[index] = rewards[index] + discount * ahead
    return returns


def role(kind: TurnKind) -> str:
    """A verdict is the verifier's; attempts and revisions are the solver's (PAG, SPOC)."""
    return "verifier" if kind is TurnKind.VERDICT else "solver"


def positions(trajectory: Trajectory) -> list[tuple[TurnKind, int]]:
    """(kind, how many turns of that kind there have been, from 1) of every turn."""
    seen: Counter[TurnKind] = Counter()
    found = []
    for turn in trajectory.turns:
        seen[turn.kind] += 1
        found.append((turn.kind, seen[turn.kind]))
    return found


def by_prompt(trajectories: Sequence[Trajectory], rewards: Rewards) -> list[list[Hashable]]:
    return [[trajectory.prompt_id] * len(trajectory.turns) for trajectory in trajectories]


def by_prompt_kind_position(trajectories: Sequence[Trajectory], rewards: Rewards) -> list[list[Hashable]]:
    """SPOC: the K samples of one prompt, the same kind of turn, the same position."""
    return [[(trajectory.prompt_id, *place) for place in positions(trajectory)] for trajectory in trajectories]


def by_history(trajectories: Sequence[Trajectory], rewards: Rewards) -> list[list[Hashable]]:
    """S2R: all turns of the same role whose earlier turns had the same rewards, over the whole batch.

    Turns whose history fewer than `LEAST_HISTORY` turns have are compared with one another, by role alone.
    """
    keys: list[list[Hashable]] = []
    counts: Counter[Hashable] = Counter()
    for trajectory, own in zip(trajectories, rewards, strict=True):
        history: tuple[float, ...] = ()
        keys.append([])
        for turn, reward in zip(trajectory.turns, own, strict=True):
            keys[-1].append((role(turn.kind), history))
            if turn.sampled:
                counts[keys[-1][-1]] += 1
                history += (reward,)
    return [[key if counts[key] >= LEAST_HISTORY else key[:1] for key in own] for own in keys]


def by_batch(trajectories: Sequence[Trajectory], rewards: Rewards) -> list[list[Hashable]]:
    """Turns of the same kind and position over the whole batch: for one sample per prompt."""
    return [list(positions(trajectory)) for trajectory in trajectories]


GROUPS: dict[str, Callable[[Sequence[Trajectory], Rewards], list[list[Hashable]]]] = {
    "prompt": by_prompt,
    "prompt_kind_position": by_prompt_kind_position,
    "history": by_history,
    "batch": by_batch,
}


def kl_weights(trajectory: Trajectory, default: float, table: Mapping[str, float]) -> np.ndarray:
    """[sampled tokens]: the KL's weight in each turn, the entry for "kind/position", else for "kind", else the default."""
    weights: list[float] = []
    for turn, (kind, position) in zip(trajectory.turns, positions(trajectory), strict=True):
        if turn.sampled:
            weights += [table.get(f"{kind}/{position}", table.get(str(kind), default))] * len(turn.token_ids)
    return np.array(weights)


def sampled_turns(trajectory: Trajectory) -> list[tuple[int, Turn]]:
    return [(index, turn) for index, turn in enumerate(trajectory.turns) if turn.sampled]


def assign_credit(
    settings: CreditConfig,
    critic: CriticConfig,
    trajectories: Sequence[Trajectory],
    rewards: Rewards,
    penalties: TokenArrays | None = None,
    values: TokenArrays | None = None,
) -> tuple[TokenArrays, TokenArrays]:
    """(advantages, returns) of every sampled token. `penalties` are taken off the rewards; `values` are the critic's."""
    penalties = penalties or [np.zeros(trajectory.sampled_tokens()) for trajectory in trajectories]
    if settings.advantage in ("gae", "reinforce++"):
        values = values or [np.zeros(trajectory.sampled_tokens()) for trajectory in trajectories]
        found = [along_tokens(settings, critic, *parts) for parts in zip(trajectories, rewards, penalties, values, strict=True)]
        returns = [advantage_t + value_t for advantage_t, value_t in zip(found, values, strict=True)]
    else:
        found = compared(settings, trajectories, rewards, penalties)
        returns = found
    return normalised(settings, trajectories, found), returns


def along_tokens(
    settings: CreditConfig,
    critic: CriticConfig,
    trajectory: Trajectory,
    rewards: Sequence[float],
    penalties_t: np.ndarray,
    values_t: np.ndarray,
) -> np.ndarray:
    """Token by token: a turn's reward is paid at its last token. REINFORCE++ is the case without critic, discount or trace."""
    turns = sampled_turns(trajectory)
    ends = np.cumsum([len(turn.token_ids) for _, turn in turns], dtype=int) - 1
    rewards_t, ends_t = -penalties_t, np.zeros(len(penalties_t), dtype=bool)
    ends_t[ends] = True
    rewards_t[ends] += [rewards[index] for index, _ in turns]
    discount, trace = (critic.discount, critic.trace) if settings.advantage == "gae" else (1.0, 1.0)
    return token_advantages(rewards_t, values_t, ends_t, discount=discount, trace=trace, turn_discount=settings.turn_discount)


def compared(settings: CreditConfig, trajectories: Sequence[Trajectory], rewards: Rewards, penalties: TokenArrays) -> TokenArrays:
    """Turn by turn: all tokens of a turn have its advantage over its group. Penalties are summed over the turn."""
    keys = GROUPS[settings.group](trajectories, rewards)
    flat: list[tuple[float, Hashable, Hashable]] = []
    for number, trajectory in enumerate(trajectories):
        paid, start = list(rewards[number]), 0
        for index, turn in sampled_turns(trajectory):
            paid[index] -= float(penalties[number][start : start + len(turn.token_ids)].sum())
            start += len(turn.token_ids)
        returns = turn_returns(trajectory, paid, settings.turn_discount)
        flat += [(returns[index], keys[number][index], trajectory.id) for index, _ in sampled_turns(trajectory)]
    columns = [list(column) for column in zip(*flat, strict=True)] or [[], [], []]
    advantages = iter(ESTIMATORS[settings.advantage](*columns))
    return [
        np.concatenate([np.full(len(turn.token_ids), next(advantages)) for _, turn in sampled_turns(trajectory)] or [np.zeros(0)])
        for trajectory in trajectories
    ]


def normalised(settings: CreditConfig, trajectories: Sequence[Trajectory], advantages: TokenArrays) -> TokenArrays:
    """Mean 0 and variance 1 over the batch, or apart over the tokens of solver and verifier (PAG's RoleAdvNorm)."""
    how = "batch" if settings.advantage == "reinforce++" and settings.normalise == "none" else settings.normalise
    if how == "none":
        return advantages
    parts, arrays = [], []
    for trajectory, advantages_t in zip(trajectories, advantages, strict=True):
        turns = sampled_turns(trajectory)
        cuts = np.cumsum([len(turn.token_ids) for _, turn in turns], dtype=int)[:-1]
        arrays += np.split(advantages_t, cuts) if turns else []
        parts += [role(turn.kind) if how == "role" else "" for _, turn in turns]
    whitened = iter(whiten(arrays, parts))
    return [np.concatenate([next(whitened) for _ in sampled_turns(trajectory)] or [np.zeros(0)]) for trajectory in trajectories]
