"""Several answers to one problem: majority and weighted voting, best-of-n, oracles, accuracy at a token budget. Pure functions.

A problem's answers are `Answer`s. Two answers are the same if they share a `key`; `answer_key` gives all right answers of a
problem one key and wrong ones their normalised text. An answer without a key (the model gave none) casts no vote and wins
nothing. Every tie counts as the share of right answers among the tied, so nothing depends on order. "Unbiased" means the
expectation over all subsets of n of the N samples (without replacement), which has far less variance than one subset.
"""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srl.reward.spelling import normalise, plain_number
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind, Verdict

RIGHT = "right"
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


@dataclass(frozen=True, slots=True)
class Answer:
    """`score`: the model's own judgement, 0 to 1. `tokens`: what it cost to sample."""

    key: str | None
    score: float = 0.0
    tokens: int = 0

    @property
    def right(self) -> bool:
        return self.key == RIGHT


def answer_key(turn: Turn | None) -> str | None:
    if turn is None or turn.answer is None:
        return None
    if turn.outcome is None:
        raise ValueError(f"ungraded {turn.kind}: its outcome is None (answer {turn.answer!r})")
    if turn.outcome is Outcome.CORRECT:
        return RIGHT
    text = FRACTION.sub(r"\1/\2", turn.answer)
    number = plain_number(text)
    return f"wrong {normalise(text) if number is None else number}"


def verdict_score(trajectory: Trajectory) -> float:
    """What the last verdict on the trajectory's final answer says of it: 1 correct, 0 wrong, 0.5 nothing.

    The paper samples the verdict as text and never reads it off as a probability; so does this. A revision after the last
    verdict has not been judged, and a verdict on a revision that gave no answer is none on the answer that then counts.
    """
    final, counts, said = trajectory.final(), False, None
    for turn in trajectory.turns:
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            counts = turn is final
        elif counts and turn.kind is TurnKind.VERDICT and turn.verdict is not None:
            said = turn.verdict
    return 0.5 if said is None else float(said is Verdict.CORRECT)


def final_answers(trajectories: Sequence[Trajectory]) -> dict[str, list[Answer]]:
    """Final answers by problem; problems and samples in the order of their ids."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for trajectory in sorted(trajectories, key=lambda item: (item.prompt_id, item.id)):
        answer = Answer(answer_key(trajectory.final()), verdict_score(trajectory), trajectory.sampled_tokens())
        groups[trajectory.prompt_id].append(answer)
    return dict(groups)


def first_answers(trajectories: Sequence[Trajectory]) -> dict[str, list[Answer]]:
    """First attempts by problem, at the cost of the attempt alone: what independent sampling without verdicts would give."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for trajectory in sorted(trajectories, key=lambda item: (item.prompt_id, item.id)):
        attempt = next(iter(trajectory.answers()), None)
        groups[trajectory.prompt_id].append(Answer(answer_key(attempt), 0.0, len(attempt.token_ids) if attempt else 0))
    return dict(groups)


def vote(answers: Sequence[Answer], weight: Callable[[Answer], float] = lambda answer: 1.0) -> float:
    """Probability that the most-voted answer is right; votes of weight 0 count for nothing, without any vote it is 0."""
    votes: dict[str, float] = defaultdict(float)
    for answer in answers:
        if answer.key is not None and (size := weight(answer)) > 0:
            votes[answer.key] += size
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [key for key, size in votes.items() if math.isclose(size, most)]
    return winners.count(RIGHT) / len(winners)


def majority(answers: Sequence[Answer], n: int) -> float:
    """maj@n, unbiased: the probability that a majority vote among n of these answers, drawn without replacement, is right.

    Exact. For each number k of right answers drawn, the others are counted by a polynomial product in which every wrong answer
    takes at most k of the n - k places; `ties[j]` counts draws in which j wrong answers reach k too and the right one wins with
    1 / (j + 1). Raises ValueError for fewer than n answers.
    """
    check_size(answers, n)
    counts = Counter(answer.key for answer in answers)
    silent, right = counts.pop(None, 0), counts.pop(RIGHT, 0)
    total = 0.0
    for k in range(1, min(right, n) + 1):
        places = n - k
        # ways[j, m]: draws of m answers so far in which j wrong answers have exactly k votes. Python integers do not round.
        ways = np.zeros((places // k + 1, places + 1), dtype=object)
        ways[0, :] = [math.comb(silent, m) for m in range(places + 1)]
        for count in counts.values():
            ways = add_wrong_answer(ways, count, k)
        wins = sum(int(row[places]) / (ties + 1) for ties, row in enumerate(ways))
        total += math.comb(right, k) * wins
    return total / math.comb(len(answers), n)


def add_wrong_answer(ways: np.ndarray, count: int, k: int) -> np.ndarray:
    """`ways` after one more wrong answer of which there are `count`, and of which at most k are drawn."""
    result = np.zeros_like(ways)
    ties, places = ways.shape[0], ways.shape[1]
    for drawn in range(min(count, k, places - 1) + 1):
        shift = int(drawn == k)
        result[shift:, drawn:] += math.comb(count, drawn) * ways[: ties - shift, : places - drawn]
    return result


def best_of(answers: Sequence[Answer], n: int) -> float:
    """Self-verified best-of-n, unbiased: of n drawn answers, one of those with the highest score is taken at random.

    Given that the highest score drawn is s, each answer of that score is equally likely to be taken, so the expectation is
    sum_s P(highest is s) * (share of right answers of score s). An answer that is none is never taken before one that is.
    """
    check_size(answers, n)
    levels: dict[float, list[bool]] = defaultdict(list)
    for answer in answers:
        levels[-1.0 if answer.key is None else answer.score].append(answer.right)
    total, below = 0.0, 0
    for score in sorted(levels):
        up_to = below + len(levels[score])
        chance = (math.comb(up_to, n) - math.comb(below, n)) / math.comb(len(answers), n)
        total += chance * sum(levels[score]) / len(levels[score])
        below = up_to
    return total


def weighted_vote(answers: Sequence[Answer], n: int, draws: int = 200, seed: int = 0) -> float:
    """Voting weighted by the score, over `draws` random subsets of n answers (over all answers if n is their number).

    An answer scored 0 has no vote; when all drawn answers are scored 0 the plain majority decides.
    """
    check_size(answers, n)
    results = []
    for subset in subsets(answers, n, draws, seed):
        weighted = any(answer.score > 0 and answer.key is not None for answer in subset)
        results.append(vote(subset, lambda answer: answer.score) if weighted else vote(subset))
    return sum(results) / len(results)


def subsets(answers: Sequence[Answer], n: int, draws: int, seed: int) -> list[list[Answer]]:
    if n == len(answers):
        return [list(answers)]
    rng = random.Random(f"{seed} {n} {len(answers)}")
    return [rng.sample(list(answers), n) for _ in range(draws)]


def early_stop(answers: Sequence[Answer], n: int, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """(probability of a right answer, samples used) when sampling ends at the first answer that the model calls correct.

    At most n samples, in random order, mean over `draws` orders; when none is called correct, the majority of the n decides.
    """
    check_size(answers, n)
    rng = random.Random(f"{seed} {n} {len(answers)}")
    right, used = 0.0, 0
    for _ in range(draws):
        order = rng.sample(list(answers), n)
        end = next((index for index, answer in enumerate(order) if answer.score == 1 and answer.key is not None), None)
        right += vote(order) if end is None else order[end].right
        used += n if end is None else end + 1
    return right / draws, used / draws


def check_size(answers: Sequence[Answer], n: int) -> None:
    if not 1 <= n <= len(answers):
        raise ValueError(f"n={n} of {len(answers)} samples per problem: n must be from 1 to the number of samples")


def at_turns(group: Sequence[Trajectory], n: int, k: int) -> float:
    """m{n}@t{k} of one problem: majority over the answers of the first k turns of its first n samples, by id.

    m5@t1 votes over five first attempts, m1@t5 over five answers of one trajectory. A trajectory that stopped before turn k
    stands by its last answer, which votes for the turns it did not take.
    """
    chosen = sorted(group, key=lambda item: item.id)[:n]
    if len(chosen) < n:
        raise ValueError(f"m{n}@t{k}: the problem has {len(chosen)} samples")
    keys = [answer_key(turn) for trajectory in chosen for turn in first_turns(trajectory, k)]
    return vote([Answer(key) for key in keys])


def first_turns(trajectory: Trajectory, k: int) -> list[Turn]:
    answers = trajectory.answers()[:k]
    return answers + answers[-1:] * (k - len(answers))


def oracle_at(trajectory: Trajectory, k: int) -> bool:
    """p1@t{k}: whether any of the first k answers is right; what a perfect judge of one's own turns could reach."""
    return any(answer_key(turn) == RIGHT for turn in trajectory.answers()[:k])


def accuracy_at_tokens(
    groups: dict[str, list[Answer]], budget: float, draws: int = 50, seed: int = 0
) -> tuple[float, float, float]:
    """(per cent right, sampled tokens per problem, samples per problem) of a majority among what `budget` tokens pay for.

    Samples are taken in a random order until the next does not fit; the first is always taken. Mean over `draws` orders per
    problem. Used to compare methods at equal cost: a self-correcting trajectory is dearer than an attempt.
    """
    right = spent = taken = 0.0
    for problem, answers in sorted(groups.items()):
        rng = random.Random(f"{seed} {problem}")
        for _ in range(draws):
            order = rng.sample(answers, len(answers))
            tokens, size = order[0].tokens, 1
            while size < len(order) and tokens + order[size].tokens <= budget:
                tokens += order[size].tokens
                size += 1
            right, spent, taken = right + vote(order[:size]), spent + tokens, taken + size
    total = draws * len(groups)
    return 100 * right / total, spent / total, taken / total


def mean_over_problems(groups: dict[str, list[Answer]], n: int, rule: Callable[[Sequence[Answer], int], float]) -> float:
    """Per cent: `rule` (majority, best_of, weighted_vote) at n, averaged over problems."""
    return 100 * sum(rule(answers, n) for answers in groups.values()) / len(groups)
