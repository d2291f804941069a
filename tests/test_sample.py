"""The pure parts of sequential sampling; the pipeline itself needs Ray."""

import pytest

from srl.config import load_config
from srl.pipelines.sample import Sampler, continued, is_accepted, row
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741
RIGHT, WRONG = Outcome.CORRECT, Outcome.INCORRECT


def judged(name: str, outcome: Outcome, verdict: str | None) -> Trajectory:
    turns = [
        Turn(A, [5, 1], "5", [-1.0, -0.1], 0, answer="5", outcome=outcome),
        Turn(I, [2, 9, 3], "Check"),
        Turn(V, [7, 1], "7", [-2.0, -0.2], 0, verdict=verdict and Verdict(verdict)),
    ]
    return Trajectory(name, "p", "question", "5", [0], turns, StopReason.ANSWERED, seed=4)


def test_a_continuation_is_new_and_leaves_its_origin_as_it_was():
    origin = judged("p/a0", WRONG, "wrong")
    new = continued(origin, "v1")
    new.turns.append(Turn(R, [8]))
    new.turns[0].outcome = RIGHT
    assert (new.id, new.prompt_id, new.gold, new.seed, new.stop_reason) == ("p/a0/v1", "p", "5", 4, None)
    assert len(origin.turns) == 3 and origin.turns[0].outcome is WRONG


def test_a_row_holds_the_last_turn_and_names_what_it_continues():
    found = row(judged("p/a0/v1", WRONG, "wrong"), "abc")
    assert found == {
        "id": "p/a0/v1", "prompt_id": "p", "question": "question", "gold": "5", "kind": "verdict", "parent": "p/a0", "text": "7",
        "token_ids": [7, 1], "logprobs": [-2.0, -0.2], "answer": None, "outcome": None, "verdict": "wrong", "accepted": True,
        "seed": 4, "weights": "abc",
    }  # fmt: skip


def test_an_attempt_has_no_parent():
    attempt = judged("p/a0", WRONG, "wrong")
    attempt.turns = attempt.turns[:1]
    assert (row(attempt, "")["parent"], row(attempt, "")["outcome"], row(attempt, "")["accepted"]) == ("", "incorrect", True)


@pytest.mark.parametrize(
    ("outcome", "verdict", "accepted"),
    [
        (RIGHT, "correct", True),
        (RIGHT, "wrong", False),
        (WRONG, "wrong", True),
        (WRONG, "correct", False),
        (Outcome.NO_ANSWER, "wrong", True),
        (RIGHT, None, False),
        (WRONG, None, False),
    ],
)
def test_a_verdict_is_accepted_when_it_agrees_with_the_grade_of_its_attempt(outcome, verdict, accepted):
    assert is_accepted(judged("t", outcome, verdict)) is accepted


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_revision_is_accepted_when_it_is_right(outcome):
    trajectory = judged("t", WRONG, "wrong")
    trajectory.turns.append(Turn(R, [8], answer="5", outcome=outcome))
    assert is_accepted(trajectory) is (outcome is RIGHT)


def test_revisions_are_spread_over_the_verdicts_that_said_wrong(tokenizer_folder):
    # M1 = 3 for the wrong attempt a0 with two such verdicts, M2 = 1 for the correct attempt a1; a2 has none.
    config = load_config(None, [f"model.path={tokenizer_folder}", "stage1.wrong_revisions=3", "stage1.correct_revisions=1"])
    sampler = Sampler(config, workers=None, weight_version=0, reward_actors=[], weights="")
    found = sampler._to_revise(
        [
            judged("p/a0/v0", WRONG, "wrong"),
            judged("p/a0/v1", WRONG, "correct"),
            judged("p/a0/v2", WRONG, "wrong"),
            judged("p/a1/v0", RIGHT, "wrong"),
            judged("p/a2/v0", RIGHT, "correct"),
            judged("p/a2/v1", RIGHT, None),
        ]
    )
    assert [trajectory.id for trajectory in found] == ["p/a0/v0/r0", "p/a0/v2/r1", "p/a0/v0/r2", "p/a1/v0/r0"]
