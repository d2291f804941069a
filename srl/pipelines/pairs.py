"""Preference pairs from graded trajectories of one prompt: pure functions.

D1, D2 and D3 are the paper's typed pairs (section 5.6). Together they leave out (wrong, No, wrong) against (wrong, Yes): which
of the two is worse is not clear.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from srl.pipelines.filters import first_right, groups, solved
from srl.reward.shaping import agrees, is_right
from srl.trajectory import Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Pair:
    winner: Trajectory
    loser: Trajectory
    rule: str


def path(trajectory: Trajectory) -> str:
    """How a trajectory went, e.g. "wrong,No,correct" or "correct,Yes": attempt, first verdict, and after No the last revision.

    A revision without an answer is wrong, although the answer before it is the final one. "" if its attempt or verdict is
    missing, if nothing follows a No, or if anything but another Yes follows a Yes.
    """
    answers, verdicts = trajectory.answers(), trajectory.verdicts()
    if not answers or not verdicts or verdicts[0].verdict is None:
        return ""
    begin = "correct" if first_right(trajectory) else "wrong"
    if verdicts[0].verdict is Verdict.CORRECT:
        return f"{begin},Yes" if len(answers) == 1 and all(turn.verdict is Verdict.CORRECT for turn in verdicts) else ""
    return f"{begin},No,{'correct' if is_right(trajectory, answers[-1]) else 'wrong'}" if len(answers) > 1 else ""


TYPED = {
    "d1": [("wrong,No,correct", "wrong,No,wrong")],
    "d2": [("correct,No,correct", "correct,No,wrong")],
    "d3": [("wrong,No,correct", "wrong,Yes"), ("correct,Yes", "correct,No,wrong")],
}


def correctness(group: Sequence[Trajectory]) -> list[tuple[list[Trajectory], list[Trajectory]]]:
    """Right final answer over wrong final answer."""
    return [([t for t in group if solved(t)], [t for t in group if not solved(t)])]


def reward(group: Sequence[Trajectory]) -> list[tuple[list[Trajectory], list[Trajectory]]]:
    """Highest over lowest reward, if they differ."""
    high, low = max(t.reward for t in group), min(t.reward for t in group)
    return [([t for t in group if t.reward == high], [t for t in group if t.reward == low])] if high > low else []


def verdict(group: Sequence[Trajectory]) -> list[tuple[list[Trajectory], list[Trajectory]]]:
    """A first verdict that agrees with the grader over one that does not, for attempts with the same outcome."""
    sides = []
    for outcome in (True, False):
        judged = [t for t in group if t.verdicts() and t.answers() and first_right(t) is outcome]
        right = {t.id for t in judged if agrees(t.verdicts()[0].verdict, outcome)}
        sides.append(([t for t in judged if t.id in right], [t for t in judged if t.id not in right]))
    return sides


def typed(name: str) -> Callable[[Sequence[Trajectory]], list[tuple[list[Trajectory], list[Trajectory]]]]:
    def by_path(group: Sequence[Trajectory]) -> list[tuple[list[Trajectory], list[Trajectory]]]:
        return [([t for t in group if path(t) == win], [t for t in group if path(t) == lose]) for win, lose in TYPED[name]]

    return by_path


# Name -> the two sides that each comparison of a group draws its pair from.
PAIR_RULES = {"correctness": correctness, "reward": reward, "verdict": verdict, **{name: typed(name) for name in TYPED}}


def build_pairs(trajectories: Sequence[Trajectory], rules: dict[str, Callable], share_attempt: bool, seed: int) -> list[Pair]:
    """At most one pair for each comparison of each rule and each prompt, drawn at random by `seed` and prompt.

    `share_attempt` asks that winner and loser have the same first attempt, token by token: then only what follows it counts.
    """
    pairs = []
    for prompt, members in groups(trajectories).items():
        for name, rule in rules.items():
            for number, (winners, losers) in enumerate(rule(members)):
                dice = random.Random(f"{seed} {prompt} {name} {number}")
                matches = [
                    (winner, loser)
                    for winner in winners
                    for loser in losers
                    if not share_attempt or attempt_key(winner) == attempt_key(loser)
                ]
                if matches:
                    pairs.append(Pair(*dice.choice(matches), name))
    return pairs


def attempt_key(trajectory: Trajectory) -> Hashable:
    return tuple(trajectory.answers()[0].token_ids) if trajectory.answers() else trajectory.id
