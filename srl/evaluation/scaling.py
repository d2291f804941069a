"""Test-time scaling: what more samples per problem buy (the paper's Figure 2). Pure functions."""

from typing import Any

from srl.evaluation.votes import (
    Answer,
    accuracy_at_tokens,
    at_turns,
    best_of,
    early_stop,
    final_answers,
    first_answers,
    majority,
    mean_over_problems,
    oracle_at,
    weighted_vote,
)
from srl.trajectory import Trajectory

MATCHED = (1, 2, 4, 8, 16, 32, 64)  # budgets, in self-correcting trajectories


def scaling(trajectories: list[Trajectory]) -> dict[str, Any]:
    """Curves over n samples per problem; accuracies in per cent, lists as long as `n`.

    `maj`, `best_of`, `weighted`: over final answers of whole trajectories, which use `answers` model answers and `tokens` tokens
    per problem. `independent`: majority over n first attempts. `early_stop`: trajectories one after the other until one is
    verified, [accuracy, trajectories used]. `matched`: majority of what the same tokens buy, self-correcting and independent
    (`budgets`). `oracle_by_turn`: p1@t1, p1@t2, ...; `m_by_turn`: m{N}@t1, m{N}@t2, ... with all N samples.
    """
    final, first = final_answers(trajectories), first_answers(trajectories)
    samples = min(len(answers) for answers in final.values())
    sizes = [n for n in (*MATCHED, samples) if n <= samples]
    sizes = sorted(set(sizes))
    answers = sum(len(trajectory.answers()) for trajectory in trajectories) / len(trajectories)
    tokens = sum(trajectory.sampled_tokens() for trajectory in trajectories) / len(trajectories)
    turns = range(1, 1 + max(1, *(len(trajectory.answers()) for trajectory in trajectories)))
    return {
        "n": sizes,
        "answers": [round(n * answers, 2) for n in sizes],
        "tokens": [round(n * tokens, 1) for n in sizes],
        "maj": curve(final, sizes, majority),
        "best_of": curve(final, sizes, best_of),
        "weighted": curve(final, sizes, weighted_vote),
        "independent": curve(first, sizes, majority),
        "early_stop": [stopped(final, n) for n in sizes],
        "matched": [matched(final, first, budget) for budget in budgets(sizes, tokens, first)],
        "oracle_by_turn": [share(oracle_at(trajectory, k) for trajectory in trajectories) for k in turns],
        "m_by_turn": [by_turn(trajectories, samples, k) for k in turns],
    }


def curve(groups: dict[str, list[Answer]], sizes: list[int], rule) -> list[float]:
    return [round(mean_over_problems(groups, n, rule), 2) for n in sizes]


def stopped(groups: dict[str, list[Answer]], n: int) -> list[float]:
    pairs = [early_stop(answers, n) for answers in groups.values()]
    return [round(100 * sum(right for right, _ in pairs) / len(pairs), 2), round(sum(used for _, used in pairs) / len(pairs), 3)]


def budgets(sizes: list[int], tokens: float, first: dict[str, list[Answer]]) -> list[float]:
    """Tokens per problem that both sides can spend: those of n trajectories, up to all first attempts, which are cheaper.

    None if all first attempts cost less than one trajectory.
    """
    most = sum(answer.tokens for answers in first.values() for answer in answers) / len(first)
    return sorted({*(n * tokens for n in sizes if n * tokens < most), most}) if most >= tokens else []


def matched(final: dict[str, list[Answer]], first: dict[str, list[Answer]], budget: float) -> dict[str, Any]:
    """Both at `budget` tokens per problem: [accuracy, tokens spent, samples]."""
    spent = {"self_rewarding": accuracy_at_tokens(final, budget), "independent": accuracy_at_tokens(first, budget)}
    return {"budget": round(budget, 1)} | {name: [round(value, 2) for value in found] for name, found in spent.items()}


def by_turn(trajectories: list[Trajectory], n: int, k: int) -> float:
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.prompt_id, []).append(trajectory)
    return round(100 * sum(at_turns(group, n, k) for group in groups.values()) / len(groups), 2)


def share(flags) -> float:
    values = list(flags)
    return round(100 * sum(values) / len(values), 2)
