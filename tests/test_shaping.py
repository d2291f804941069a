"""Rewards per turn, filters, preference pairs and restarts on small graded trajectories."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.config import RECIPES, load_config
from srl.driver.policy import recipe_functions
from srl.learner.credit import assign_credit
from srl.pipelines.filters import FILTERS, apply_filters
from srl.pipelines.pairs import PAIR_RULES, build_pairs, path
from srl.pipelines.restarts import restart_groups, verification_groups
from srl.reward.rules import apply_grades, final_outcome, grade_request
from srl.reward.shaping import (
    REWARDS,
    alone_trajectories,
    graded_boxes,
    improvement,
    learnable,
    on_last_turn,
    restart_bonus,
    revision_outcome,
    self_aligned,
    self_aligned_rewards,
    signed_process,
    turn_outcome,
    turn_rewards,
    verdict_agreement,
)  # fmt: skip
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict
from tests.test_protocol import CHECKED_RIGHT, CHECKED_WRONG, RIGHT, SLIP, play

GRADES = {"66": Outcome.CORRECT, "56": Outcome.INCORRECT}  # of what RIGHT and SLIP answer
KINDS = {"a": TurnKind.ATTEMPT, "r": TurnKind.REVISION, "v": TurnKind.VERDICT, "i": TurnKind.INSTRUCTION}


def went(code: str, name: str = "t", prompt: str = "p", attempt: int = 1, **fields) -> Trajectory:
    """ "a- v- r+": a wrong attempt, the verdict "wrong", a right revision; "r0" has no box, "v0" no verdict, "i" is said."""
    turns = []
    for word in code.split():
        kind, sign = KINDS[word[0]], word[1:]
        turn = Turn(kind, [attempt if kind is TurnKind.ATTEMPT else 9], logprobs=[] if kind is TurnKind.INSTRUCTION else [-1.0])
        if kind is TurnKind.VERDICT:
            turn.verdict = {"+": Verdict.CORRECT, "-": Verdict.WRONG}.get(sign)
        elif kind is not TurnKind.INSTRUCTION:
            turn.outcome = {"+": Outcome.CORRECT, "-": Outcome.INCORRECT}.get(sign, Outcome.NO_ANSWER)
            turn.answer = None if sign == "0" else sign
        turns.append(turn)
    return Trajectory(name, prompt, "", "", [1], turns, **fields)


RULES = {
    turn_outcome: {"a- v- i r+": [0, 0, 0, 1], "a+ v+": [1, 0], "a+ i r-": [1, 0, 0], "a0": [0]},
    revision_outcome: {"a+ i r+": [0, 0, 1], "a+ v+": [0, 0]},
    improvement: {"a- v- r+ v+": [0, 0, 1, 0], "a+ v- r-": [0, 0, -1], "a+ v- r+": [0, 0, 0], "a- v- r- v- r+": [0] * 4 + [1]},
    verdict_agreement: {"a- v- r+ v+": [0, 1, 0, 1], "a+ v-": [0, 0], "a- v+": [0, 0], "a+ v0": [0, 0], "v+": [0]},
    # Doubled: the flips from wrong to right and from right to wrong, and verdicts on right answers.
    signed_process: {"a- v- r+ v+": [-1, 1, 2, 2], "a+ v- r- v-": [1, -2, -2, 1], "a+ i r+": [1, 0, 1], "v+": [0]},
    graded_boxes: {"a+ v+": [1, 1], "a- v+": [-0.5, -0.5], "a0 v0": [-1, -1], "a- i r+": [-0.5, 0, 1], "v+": [0]},
    # Equation 1: right answers, and verdicts that say what the grader says, be they "wrong".
    learnable: {"a- v- i r+ v+": [0, 1, 0, 1, 1], "a+ v- r- v+": [1, 0, 0, 0], "a0 v0": [0, 0], "v+ a+": [0, 1]},
    REWARDS["signed_outcome"]: {"a- v- r+": [0, 0, 1], "a+ v- r-": [0, 0, -1], "v+": [-1]},
}  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), [(rule, code) for rule, cases in RULES.items() for code in cases])
def test_rewards_by_hand(rule, code):
    assert rule(went(code)) == RULES[rule][code]


@pytest.mark.parametrize("rule", REWARDS.values(), ids=REWARDS)
def test_every_rule_has_one_reward_per_turn_and_survives_a_trajectory_without_turns(rule):
    for code in ("a- v- i r+ v+", "a0", "v0", ""):
        assert len(rule(went(code))) == len(code.split())


def test_a_truncated_trajectory_ends_with_minus_one():
    assert signed_process(went("a+ v+", stop_reason=StopReason.LENGTH)) == [1.0, -1.0]
    # The next turn did not fit: what the user said last was not sampled, and no reward is paid for it.
    assert signed_process(went("a- v- i", stop_reason=StopReason.LENGTH)) == [-1.0, -1.0, 0.0]
    assert signed_process(went("a- v- r+", stop_reason=StopReason.TOKENS)) == [-1.0, 1.0, -1.0]
    assert signed_process(went("i", stop_reason=StopReason.TOKENS)) == [0.0]


def test_a_revision_of_nothing_improves_nothing():
    assert improvement(went("r+")) == [0]


def test_an_ungraded_answer_is_an_error():
    trajectory = went("a+")
    trajectory.turns[0].outcome = None
    with pytest.raises(ValueError, match="trajectory t: its attempt was not graded"):
        turn_outcome(trajectory)


def test_weighted_rules_add_up_and_what_was_said_gets_nothing():
    # PAG: outcome + improvement + agreement.
    rules = {turn_outcome: 1.0, improvement: 1.0, verdict_agreement: 1.0}
    assert turn_rewards(went("a- v- i r+"), rules) == [0, 1, 0, 2]
    # SCoRe, stage II, alpha = 10: right to wrong costs 10.
    assert turn_rewards(went("a+ i r-"), {turn_outcome: 1.0, improvement: 10.0}) == [1, 0, -10]
    given_attempt = went("a+ v+")
    given_attempt.turns[0].logprobs = []
    assert turn_rewards(given_attempt, rules) == [0, 1]


def test_a_rule_with_the_wrong_number_of_rewards_is_named():
    with pytest.raises(ValueError, match="0 rewards for the 1 turns of trajectory t"):
        turn_rewards(went("a+"), {(lambda trajectory: []): 1.0})


def test_an_outcome_is_paid_on_the_last_sampled_turn():
    assert on_last_turn(final_outcome)(went("a+ v+ i")) == [0, 1, 0]
    assert on_last_turn(final_outcome)(went("")) == []


def test_the_restart_bonus_pays_only_for_changing_the_outcome_of_a_given_attempt():
    for code, bonus in {"a- v- r+": 1.0, "a+ v- r-": -1.0, "a+ v+": 0.0, "a- v- r-": 0.0}.items():
        trajectory = went(code)
        assert restart_bonus(trajectory) == 0.0  # the policy's own attempt: no reward for failing it first
        trajectory.turns[0].logprobs = []
        assert restart_bonus(trajectory) == bonus


def test_a_model_that_skips_its_attempt_was_given_none():
    skipped = went("a0 v- r+")
    skipped.turns[0].token_ids, skipped.turns[0].logprobs = [], []  # its message began with the verdict
    assert restart_bonus(skipped) == 0


def test_plan_1_format_and_length_by_hand():
    plan_1 = {REWARDS["final_outcome"]: 1.0, REWARDS["corrected"]: 0.5}
    totals = {code: sum(turn_rewards(went(code), plan_1)) for code in ("a- v- r+", "a+ v+", "a+ v- r+", "a- v- r-", "a+ v- r-")}
    assert totals == {"a- v- r+": 1.5, "a+ v+": 1.0, "a+ v- r+": 1.0, "a- v- r-": 0.0, "a+ v- r-": 0.0}
    ends = {StopReason.VERIFIED: 0, StopReason.ROUNDS: 0, StopReason.NO_VERDICT: -1, StopReason.LENGTH: -1}
    ends |= {StopReason.TOKENS: -1, StopReason.ACCEPTED: 0}
    assert {reason: REWARDS["format_kept"](went("a+", stop_reason=reason))[0] for reason in ends} == ends
    assert REWARDS["length"](went("a+ v+ i")) == [0.0, -0.002, 0.0]  # what was said costs nothing


def test_self_aligned_reward_by_hand():
    # Perplexity 2 given the question and 4 alone: (4 - 2) / 4. The other way round: (2 - 4) / 2 = -1.
    assert self_aligned([-log(2)] * 3, [-log(4)] * 3) == pytest.approx(0.5)
    assert self_aligned([-log(4)] * 3, [-log(2)] * 3) == pytest.approx(-1.0)
    assert self_aligned([-900.0], [-1.0]) == -1.0
    with pytest.raises(ValueError, match="1 and 2 log-probabilities"):
        self_aligned([-1.0], [-1.0, -1.0])
    with pytest.raises(ValueError, match="0 and 0 log-probabilities"):
        self_aligned([], [])


@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=8))
def test_the_self_aligned_reward_stays_within_one(pairs):
    assert -1 <= self_aligned(*map(list, zip(*pairs, strict=True))) <= 1


def test_self_alignment_scores_answers_without_their_question_and_leaves_verdicts_out():
    trajectory = went("a- v- i r+")
    alone = alone_trajectories(trajectory, [7, 8])
    assert [(item.id, item.token_ids()) for item in alone] == [("t@0", [7, 8, 1]), ("t@3", [7, 8, 9])]
    found = self_aligned_rewards(trajectory, {"t@0": [-1.0 - log(2)], "t@3": [-1.0]})
    assert found == {0: pytest.approx(0.5), 3: pytest.approx(0.0)}
    trajectory.turns[0].logprobs = []
    assert [item.id for item in alone_trajectories(trajectory, [7, 8])] == ["t@3"]  # what was given is not scored


def test_the_self_aligned_recipe_pays_nothing_more_for_failing_or_answering_again(chat):
    config = load_config(None, ["recipe=self-aligned"])
    rules, _, _ = recipe_functions(config)
    right, again, failed = f"{RIGHT}\n{CHECKED_RIGHT}", f"{RIGHT}\n{CHECKED_WRONG}", f"{SLIP}\n{CHECKED_WRONG}"
    totals = []
    for message in (right, f"{again}\n{right}", f"{failed}\n{right}", failed):
        trajectory, _ = play(chat, config.protocol.name, message)
        apply_grades([trajectory], {turn_id: GRADES[answer] for turn_id, answer, _ in grade_request(trajectory)})
        # Alone, every token of an answer is half as likely: a self-aligned reward of 0.5, whatever the answer.
        alone = {
            item.id: [logprob - log(2) for turn in item.turns for logprob in turn.logprobs]
            for item in alone_trajectories(trajectory, chat.opening(""))
        }
        aligned = self_aligned_rewards(trajectory, alone)
        totals.append(sum(turn_rewards(trajectory, rules)) + config.credit.rewards["self_aligned"] * sum(aligned.values()))
    assert totals == pytest.approx([1.1, 1.1, 1.1, 0.1])


# --- filters


GROUP = [
    went("a+ v+", "stays right"), went("a- v- r+", "corrected"), went("a+ v- r-", "spoilt"), went("a- v+", "missed"),
    went("a+ v+", "easy", prompt="q"), went("a+", "cut", prompt="q", stop_reason=StopReason.LENGTH),
]  # fmt: skip
KEPT = {
    "final_right": ["stays right", "corrected", "easy", "cut"],
    "wrong_to_right": ["corrected"],
    "verdicts_agree": ["stays right", "corrected", "easy"],
    "untruncated": ["stays right", "corrected", "spoilt", "missed", "easy"],
    "mixed_groups": ["stays right", "corrected", "spoilt", "missed"],  # q: all right
    "medium_groups": ["stays right", "corrected", "spoilt", "missed"],
}


@pytest.mark.parametrize("name", KEPT)
def test_filters_by_hand(name):
    assert [trajectory.id for trajectory in FILTERS[name](GROUP)] == KEPT[name]


def test_one_verdict_that_disagrees_is_enough_and_no_answer_is_not_right():
    for code in ("a- v- r+ v-", "a+ v- r+ v+", "a+ v+ v0"):
        assert FILTERS["verdicts_agree"]([went(code)]) == []
    unanswered = [went("", "nothing"), went("v+", "verdict alone")]
    assert not any(FILTERS[name](unanswered) for name in ("final_right", "wrong_to_right", "mixed_groups"))
    assert len(FILTERS["balanced"]([*unanswered, went("a+", "right")])) == 2  # one that is not right beside it


def test_prompts_of_medium_difficulty_have_a_tenth_to_seven_tenths_right():
    def kept(right: int) -> bool:
        return bool(FILTERS["medium_groups"]([went("a+" if n < right else "a-", str(n)) for n in range(10)]))

    assert [right for right in range(11) if kept(right)] == [1, 2, 3, 4, 5, 6, 7]


def test_best_of_group_takes_the_highest_reward_of_each_prompt():
    rewarded = [
        went("a+", name, prompt, reward=reward) for name, prompt, reward in (("x", "p", 0.0), ("y", "p", 2.0), ("z", "q", 1.0))
    ]
    assert [trajectory.id for trajectory in FILTERS["best_of_group"](rewarded)] == ["y", "z"]


def test_spocs_best_of_a_group_is_not_the_one_that_failed_most():
    rules, filters, _ = recipe_functions(load_config(None, ["recipe=spoc-raft"]))
    group = [went(code, code) for code in ("a- v- r-", "a+ v+", "a- v- r+ v+", "a- v- r- v- r+ v+")]
    for trajectory in group:
        trajectory.reward = sum(turn_rewards(trajectory, rules))
    assert [trajectory.id for trajectory in apply_filters(group, filters)[0]] == ["a+ v+"]


def test_balance_keeps_as_many_right_as_wrong_first_attempts_whatever_their_order():
    kept = FILTERS["balanced"](GROUP)
    assert sorted(trajectory.turns[0].outcome for trajectory in kept) == [Outcome.CORRECT] * 2 + [Outcome.INCORRECT] * 2
    assert {trajectory.id for trajectory in FILTERS["balanced"](GROUP[::-1])} == {trajectory.id for trajectory in kept}


def test_every_filter_takes_nothing_and_gives_nothing():
    assert all(rule([]) == [] for rule in FILTERS.values())


def test_what_filters_drop_is_counted_under_their_names():
    kept, dropped = apply_filters(GROUP, {name: FILTERS[name] for name in ("untruncated", "wrong_to_right")})
    assert [trajectory.id for trajectory in kept] == ["corrected"]
    assert dropped == {"dropped_untruncated": 1, "dropped_wrong_to_right": 4}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("plan-2-first", ["1 0", "1 0", "-1 0 0 0", "-1 0 0 0"]),
        ("plan-2-second", ["0 0", "0 0", "0 0 1 0", "0 0 -1 0"]),
    ],
)
def test_a_reward_of_some_turns_alone_moves_no_others(recipe, expected):
    config = load_config(None, [f"recipe={recipe}"])
    rules, _, _ = recipe_functions(config)
    group = [went(code, str(n)) for n, code in enumerate(("a+ v+", "a+ v+", "a- v- r+ v+", "a- v- r- v-"))]
    rewards = [turn_rewards(trajectory, rules) for trajectory in group]
    advantages, _ = assign_credit(config.credit, config.critic, group, rewards)
    for found, numbers in zip(advantages, expected, strict=True):
        assert found == pytest.approx([float(number) for number in numbers.split()])


SEVERAL = [
    name
    for name in sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if len(load_config(None, [f"recipe={name}"]).credit.rewards) > 1
]


@pytest.mark.parametrize("recipe", SEVERAL)
def test_every_reward_that_a_recipe_adds_up_moves_its_advantages(recipe):
    config = load_config(None, [f"recipe={recipe}"])
    rules = REWARDS | {"self_aligned": lambda trajectory: [float(n) for n in range(len(trajectory.turns))]}
    group = [went(code, code) for code in ("a- v- i r+", "a- v- i r-", "a+ v- i r-", "a+ v+", "a- v+")]
    for first in ("a+", "a-"):
        restarted = [went(f"{first} {rest}", f"{first}{rest}", prompt=first) for rest in ("v+", "v- i r+", "v- i r-")]
        for trajectory in restarted:
            trajectory.turns[0].logprobs = []
        group += restarted

    def advantages(weights: dict[str, float]) -> np.ndarray:
        named = {rules[name]: weight for name, weight in weights.items()}
        rewards = [turn_rewards(trajectory, named) for trajectory in group]
        return np.concatenate(assign_credit(config.credit, config.critic, group, rewards)[0])

    for name in config.credit.rewards:
        without = {other: weight for other, weight in config.credit.rewards.items() if other != name}
        assert not np.allclose(advantages(without), advantages(config.credit.rewards)), name


# --- pairs


def pairs(*codes: str, rules: list[str], share_attempt: bool = False) -> set[tuple[str, str, str]]:
    members = [went(code, str(number), attempt=number % 2, reward=float(number)) for number, code in enumerate(codes)]
    named = {name: PAIR_RULES[name] for name in rules}
    return {(codes[int(p.winner.id)], codes[int(p.loser.id)], p.rule) for p in build_pairs(members, named, share_attempt, seed=0)}


def test_paths_of_trajectories():
    known = {"a- v- r+": "wrong,No,correct", "a+ v- r-": "correct,No,wrong", "a+ v+": "correct,Yes", "a- v+": "wrong,Yes"}
    assert {code: path(went(code)) for code in known} == known
    assert [path(went(code)) for code in ("", "a+", "a- v0", "a- v0 r+", "a- v-", "v+")] == [""] * 6
    # What goes on after a Yes did not end with it, and may end the other way.
    assert [path(went(code)) for code in ("a- v+ r+", "a+ v+ r-", "a- v+ v- r+", "a+ v+ v-")] == [""] * 4
    assert path(went("a+ v+ v+")) == "correct,Yes"


def test_a_revision_without_an_answer_is_a_wrong_one_and_never_wins():
    codes = ["a+ v- r0", "a- v- r0", "a+ v- r+ v- r0"]
    assert [path(went(code)) for code in codes] == ["correct,No,wrong", "wrong,No,wrong", "correct,No,wrong"]
    found = pairs("a+ v- r0", "a+ v- r-", "a+ v- r+", "a+ v+", rules=["d1", "d2", "d3"])
    assert {(winner, rule) for winner, _, rule in found} == {("a+ v- r+", "d2"), ("a+ v+", "d3")}
    assert pairs("a+ v- r0", "a+ v- r-", rules=["d1", "d2", "d3"]) == set()
    assert pairs("a+ v- r0", "a+ v- r+", rules=["d2"]) == {("a+ v- r+", "a+ v- r0", "d2")}


def test_typed_pairs_are_those_of_the_paper():
    everything = ["a- v- r+", "a- v- r-", "a- v+", "a+ v+", "a+ v- r+", "a+ v- r-"]
    assert pairs(*everything, rules=["d1", "d2", "d3"]) == {
        ("a- v- r+", "a- v- r-", "d1"),
        ("a+ v- r+", "a+ v- r-", "d2"),
        ("a- v- r+", "a- v+", "d3"),
        ("a+ v+", "a+ v- r-", "d3"),
    }


def test_the_ambiguous_pair_is_left_out():
    assert pairs("a- v- r-", "a- v+", rules=["d1", "d2", "d3", "correctness"]) == set()


def test_pairs_by_correctness_reward_and_verdict():
    assert pairs("a+ v+", "a- v+", rules=["correctness"]) == {("a+ v+", "a- v+", "correctness")}
    assert pairs("a- v+", "a+ v+", rules=["reward"]) == {("a+ v+", "a- v+", "reward")}
    assert pairs("a- v+", "a- v- r-", rules=["verdict"]) == {("a- v- r-", "a- v+", "verdict")}
    assert pairs("a+ v+", "a+ v+", rules=["correctness", "verdict"]) == set()


def test_the_sides_that_pairs_are_drawn_from():
    codes = ["a+ v+", "a+ v- r-", "a- v- r-", "a- v+", "a+", "v+", ""]
    group = [went(code, code, reward=reward) for code, reward in zip(codes, (3.0, 1.0, 3.0, 2.0, 1.0, 2.0, 1.0), strict=True)]

    def sides(rule: str) -> list[tuple[list[str], list[str]]]:
        return [([t.id for t in winners], [t.id for t in losers]) for winners, losers in PAIR_RULES[rule](group)]

    # A verdict is compared with those on answers of the same outcome; what has no verdict or no answer takes no part.
    assert sides("verdict") == [(["a+ v+"], ["a+ v- r-"]), (["a- v- r-"], ["a- v+"])]
    assert sides("reward") == [(["a+ v+", "a- v- r-"], ["a+ v- r-", "a+", ""])]
    assert sides("correctness") == [(["a+ v+", "a+"], ["a+ v- r-", "a- v- r-", "a- v+", "v+", ""])]


def test_sharing_the_attempt_asks_for_the_same_tokens():
    # By construction trajectories 0 and 2 share an attempt, 1 has another.
    assert pairs("a- v- r+", "a- v- r-", rules=["d1"], share_attempt=True) == set()
    assert pairs("a- v- r+", "a+ v+", "a- v- r-", rules=["d1"], share_attempt=True) == {("a- v- r+", "a- v- r-", "d1")}


def test_a_restarted_group_shares_its_attempt_and_so_makes_typed_pairs():
    started = restart_groups([went("a- v+", "x"), went("a+ v+", "y")], count=2, members=2)
    continuations = {Outcome.INCORRECT: ("v- r+", "v- r-"), Outcome.CORRECT: ("v+", "v- r-")}
    for number, trajectory in enumerate(started):
        trajectory.turns += went(continuations[trajectory.turns[0].outcome][number % 2]).turns
    found = build_pairs(started, {name: PAIR_RULES[name] for name in ("d1", "d2", "d3")}, True, seed=0)
    assert sorted((path(pair.winner), path(pair.loser), pair.rule) for pair in found) == [
        ("correct,Yes", "correct,No,wrong", "d3"),
        ("wrong,No,correct", "wrong,No,wrong", "d1"),
    ]


def test_prompts_do_not_mix_and_the_seed_decides():
    members = [went(code, f"{prompt}{n}", prompt) for prompt in "pqrstu" for n, code in enumerate(["a+"] * 4 + ["a-"] * 4)]
    rule = {"correctness": PAIR_RULES["correctness"]}
    one, again, other = (build_pairs(members, rule, False, seed) for seed in (0, 0, 1))
    assert one == again != other
    assert all(pair.winner.prompt_id == pair.loser.prompt_id for pair in one) and len(one) == 6


# --- restarts


def test_a_restart_gives_the_attempt_and_drops_everything_after_it():
    again = restart_groups([went("a+ v+", "x"), went("a- v- r+", "y"), went("a- v+", "z")], count=2, members=3)
    assert len(again) == 6 and len({t.id for t in again}) == 6 and len({t.prompt_id for t in again}) == 2
    for trajectory in again:
        (attempt,) = trajectory.turns
        assert attempt.kind is TurnKind.ATTEMPT and not attempt.sampled and trajectory.stop_reason is None
    assert sorted(t.turns[0].outcome for t in again) == [Outcome.CORRECT] * 3 + [Outcome.INCORRECT] * 3


def test_restarts_need_prompts_with_right_and_wrong_answers_and_verification_does_not():
    alike = [went("a+ v+", "x", "p"), went("a- v+", "y", "q")]
    assert restart_groups(alike, 2, 1) == restart_groups([went("a+", "x"), went("a-", "y")], 2, 1) == []  # nor without a verdict
    assert [t.prompt_id for t in verification_groups(alike, 2, 1)] == ["x+verify", "y+verify"]


def test_at_most_one_right_and_one_wrong_attempt_of_a_prompt_is_given_and_none_where_nothing_was_answered():
    many = [went("a+ v+", f"right {n}") for n in range(5)] + [went("a- v+", f"wrong {n}") for n in range(5)]
    assert len(verification_groups([*many, went("", "nothing", prompt="q")], count=10, members=1)) == 2
    assert verification_groups([*many[:5], went("", "nothing", prompt="q")], count=10, members=1) == []


def test_verification_is_balanced_and_never_more_than_asked():
    many = [went("a+ v+", f"{n}", prompt=f"p{n}") for n in range(9)] + [went("a- v+", "w", prompt="w")]
    groups = verification_groups(many, count=4, members=2)
    assert sorted(t.turns[0].outcome for t in groups) == [Outcome.CORRECT] * 2 + [Outcome.INCORRECT] * 2
    assert verification_groups(many[::-1], count=4, members=2) == groups  # the order in which they arrive changes nothing


def test_further_prompts_are_at_most_as_many_as_asked_and_begin_anew():
    group = [
        went(f"a{sign} v+", f"{n}{sign}", prompt=f"p{n}", stop_reason=StopReason.LENGTH, reward=1.0)
        for n in range(3)
        for sign in "+-"
    ]
    found = verification_groups(group, 3, members=2)
    assert len(found) == 6 and [t.turns[0].outcome for t in found[::2]].count(Outcome.CORRECT) == 2
    assert {(t.stop_reason, t.reward, t.turns[0].sampled) for t in found} == {(None, None, False)}


def test_equal_rewards_are_no_preference():
    assert PAIR_RULES["reward"]([went("a+ v+", name, reward=1.0) for name in "xy"]) == []


def test_what_has_no_attempt_shares_it_with_nobody():
    assert pairs("a+ v+", "", "v+", rules=["correctness"], share_attempt=True) == set()
