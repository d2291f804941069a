"""Rewards per turn from the literature: pure functions, graded trajectory -> one reward for each of its turns.

Weighted sums of them, with a discount across turns (srl/learner/credit.py), are the reward side of every recipe:

SCoRe stage I    revision_outcome                          SCoRe stage II   turn_outcome + 10 improvement
PAG              turn_outcome + improvement + verdict_agreement
SPOC             turn_outcome + verdict_agreement          S2R, process     signed_process
RISE, online     graded_boxes                              Satori           final_outcome + 0.5 restart_bonus
plan 1           final_outcome + 0.5 corrected             plan 2           attempt_outcome, then revision_outcome
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from srl.reward.rules import final_outcome
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

TurnRule = Callable[[Trajectory], list[float]]


def turn_rewards(trajectory: Trajectory, rules: Mapping[TurnRule, float]) -> list[float]:
    """Weighted sum of the rules' rewards, one per turn, 0 for turns that were not sampled.

    Raises ValueError for a rule with another number of rewards.
    """
    total = [0.0] * len(trajectory.turns)
    for rule, weight in rules.items():
        rewards = rule(trajectory)
        if len(rewards) != len(total):
            raise ValueError(f"{rule}: {len(rewards)} rewards for the {len(total)} turns of trajectory {trajectory.id}")
        total = [sum_ + weight * reward for sum_, reward in zip(total, rewards, strict=True)]
    return [reward if turn.sampled else 0.0 for reward, turn in zip(total, trajectory.turns, strict=True)]


def on_last_turn(rule: Callable[[Trajectory], float]) -> TurnRule:
    """A reward of the whole trajectory, paid when its last sampled turn ends."""

    def paid(trajectory: Trajectory) -> list[float]:
        rewards = [0.0] * len(trajectory.turns)
        sampled = [index for index, turn in enumerate(trajectory.turns) if turn.sampled]
        if sampled:
            rewards[sampled[-1]] = rule(trajectory)
        return rewards

    return paid


def is_right(trajectory: Trajectory, turn: Turn) -> bool:
    """Raises ValueError if the answer was not graded."""
    if turn.outcome is None:
        raise ValueError(f"trajectory {trajectory.id}: its {turn.kind} was not graded")
    return turn.outcome is Outcome.CORRECT


def walk(trajectory: Trajectory) -> Iterator[tuple[Turn, bool | None, bool | None]]:
    """(turn, is the answer it gives or judges right, was the answer before that right) for every turn.

    None where there is no such answer: said turns, a verdict on nothing, the first attempt's predecessor.
    """
    latest: bool | None = None
    before: bool | None = None
    for turn in trajectory.turns:
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            before, latest = latest, is_right(trajectory, turn)
        yield turn, latest if turn.kind is not TurnKind.INSTRUCTION else None, before


def agrees(verdict: Verdict | None, right: bool) -> bool:
    return verdict is (Verdict.CORRECT if right else Verdict.WRONG)


def learnable(trajectory: Trajectory) -> list[bool]:
    """Which turns may be imitated (equation 1): right attempts and revisions, and verdicts that say what the grader says."""
    return [
        right is not None and (agrees(turn.verdict, right) if turn.kind is TurnKind.VERDICT else right)
        for turn, right, _ in walk(trajectory)
    ]


def turn_outcome(trajectory: Trajectory) -> list[float]:
    """1 for every right attempt or revision (SPOC's solution messages, SCoRe's attempts)."""
    return [float(bool(right) and turn.kind is not TurnKind.VERDICT) for turn, right, _ in walk(trajectory)]


def revision_outcome(trajectory: Trajectory) -> list[float]:
    """1 for every right revision, nothing for the attempt (SCoRe, stage I)."""
    return [float(bool(right) and turn.kind is TurnKind.REVISION) for turn, right, _ in walk(trajectory)]


def improvement(trajectory: Trajectory) -> list[float]:
    """Right minus right of the answer before, for every revision: +1, 0 or -1. Its weight is alpha of SCoRe and PAG."""
    return [
        float(right) - float(before) if turn.kind is TurnKind.REVISION and before is not None else 0.0
        for turn, right, before in walk(trajectory)
    ]


def verdict_agreement(trajectory: Trajectory) -> list[float]:
    """1 for every verdict that says of the answer before it what the grader says."""
    return [
        float(turn.kind is TurnKind.VERDICT and right is not None and agrees(turn.verdict, right))
        for turn, right, _ in walk(trajectory)
    ]


def signed_process(trajectory: Trajectory) -> list[float]:
    """S2R, process level: +-1 for every answer and every verdict; doubled for an answer whose outcome differs from the one
    before and for every verdict on a right answer; -1 for the last sampled turn of a truncated trajectory."""
    rewards = []
    for turn, right, before in walk(trajectory):
        if right is None:
            rewards.append(0.0)
        elif turn.kind is TurnKind.VERDICT:
            rewards.append((1.0 if agrees(turn.verdict, right) else -1.0) * (2.0 if right else 1.0))
        else:
            rewards.append((1.0 if right else -1.0) * (2.0 if before not in (None, right) else 1.0))
    sampled = [index for index, turn in enumerate(trajectory.turns) if turn.sampled]
    if trajectory.truncated and sampled:
        rewards[sampled[-1]] = -1.0
    return rewards


def graded_boxes(trajectory: Trajectory) -> list[float]:
    """RISE-online, for solving and verifying alike: 1 right, -0.5 wrong, -1 without a box (a verdict: without a verdict)."""
    rewards = []
    for turn, right, _ in walk(trajectory):
        if right is None:
            rewards.append(0.0)
        elif turn.kind is TurnKind.VERDICT:
            rewards.append(-1.0 if turn.verdict is None else 1.0 if agrees(turn.verdict, right) else -0.5)
        else:
            rewards.append(1.0 if right else -1.0 if turn.answer is None else -0.5)
    return rewards


def restart_bonus(trajectory: Trajectory) -> float:
    """Satori: 1 for solving after a wrong attempt that was given, -1 for failing after a right one, else 0; weight: beta.

    The wrong attempt is given, so failing it on purpose earns nothing; nor does leaving it out.
    """
    first, final = next(iter(trajectory.answers()), None), trajectory.final()
    if first is None or final is None or first.sampled or not first.token_ids:
        return 0.0
    return float(is_right(trajectory, final)) - float(is_right(trajectory, first))


def attempt_outcome(trajectory: Trajectory) -> list[float]:
    """1 for a right first attempt, nothing for what follows (first phase of the paper's reward plan 2)."""
    return [float(bool(right) and turn.kind is TurnKind.ATTEMPT) for turn, right, _ in walk(trajectory)]


def corrected(trajectory: Trajectory) -> float:
    """1 for a wrong first attempt and a right final answer. With weight 0.5 beside final_outcome it is the paper's reward plan 1,
    which taught the model to fail on purpose."""
    answers = trajectory.answers()
    return float(bool(answers) and not is_right(trajectory, answers[0]) and final_outcome(trajectory) == 1.0)


def signed_outcome(trajectory: Trajectory) -> float:
    """+1 for a right final answer, else -1 (S2R, outcome level)."""
    return 2 * final_outcome(trajectory) - 1


def format_kept(trajectory: Trajectory) -> float:
    """0 for a trajectory that came to its end, -1 for one without a verdict, without the revision it announced, or cut off."""
    return -float(trajectory.truncated or trajectory.stop_reason in (StopReason.NO_VERDICT, StopReason.NO_REVISION))


def length(trajectory: Trajectory) -> float:
    """Minus the sampled tokens, in thousands: weights are small beside an outcome's 1."""
    return -trajectory.sampled_tokens() / 1000


def self_aligned(with_question: Sequence[float], alone: Sequence[float]) -> float:
    """SAR, in -1..1: (perplexity of the answer alone - perplexity given the question) / perplexity alone.

    Arguments are the answer's log-probabilities (nats per token), once after the question and once without it.
    """
    if not with_question or len(with_question) != len(alone):
        raise ValueError(f"{len(with_question)} and {len(alone)} log-probabilities of one answer")
    # 1 - exp(mean difference): the perplexities themselves may overflow, their ratio is what counts.
    difference = (sum(alone) - sum(with_question)) / len(alone)
    return max(-1.0, 1.0 - math.exp(min(difference, 1.0)))


def alone_trajectories(trajectory: Trajectory, opening: Sequence[int]) -> list[Trajectory]:
    """Each sampled attempt and revision on its own, after `opening` (the prompt of an empty question), to be scored there."""
    return [
        Trajectory(f"{trajectory.id}@{index}", "", "", "", list(opening), [turn])
        for index, turn in enumerate(trajectory.turns)
        if turn.sampled and turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION)
    ]


def self_aligned_rewards(trajectory: Trajectory, alone: Mapping[str, Sequence[float]]) -> dict[int, float]:
    """Index of each sampled attempt or revision -> `self_aligned`; `alone` has the log-probabilities by the ids above.

    Verdicts have none: what they say rightly depends on the attempt.
    """
    scored = [(index, alone.get(f"{trajectory.id}@{index}")) for index in range(len(trajectory.turns))]
    return {index: self_aligned(trajectory.turns[index].logprobs, found) for index, found in scored if found is not None}


PER_TURN = (
    turn_outcome, attempt_outcome, revision_outcome, improvement, verdict_agreement, signed_process, graded_boxes,
)  # fmt: skip
PER_TRAJECTORY = (final_outcome, signed_outcome, corrected, restart_bonus, format_kept, length)
REWARDS: dict[str, TurnRule] = {rule.__name__: rule for rule in PER_TURN}
REWARDS |= {rule.__name__: on_last_turn(rule) for rule in PER_TRAJECTORY}
