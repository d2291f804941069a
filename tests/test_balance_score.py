"""B-STaR's balance score by hand."""

from pathlib import Path

import pytest

from srl.config import load_config
from srl.driver import tune
from srl.driver.session import Session
from srl.pipelines.balance_score import Judged, balance_score, judged_attempts
from tests.demonstration_rows import family

# Two different right attempts, one of them twice, and two wrong ones of which one is believed.
ATTEMPTS = [
    Judged("a", True, 1.0),
    Judged("a", True, 0.5),
    Judged("b", True, 0.5),
    Judged("c", False, 0.5),
    Judged("d", False, 0.0),
]


@pytest.mark.parametrize(
    ("threshold", "wanted", "expected"),
    [
        (0.0, 2, 1.0 * 2 / 5),
        (0.0, 4, 0.5 * 2 / 5),
        (0.0, 1, 1.0 * 2 / 5),  # more than wanted is worth no more
        (0.5, 2, 1.0 * 2 / 4),
        (1.0, 2, 0.5 * 1 / 1),
        (1.0, 1, 1.0),
        (1.1, 1, 0.0),
    ],
)
def test_enough_different_right_samples_and_little_else(threshold, wanted, expected):
    assert balance_score(ATTEMPTS, threshold, wanted) == pytest.approx(expected)


def test_an_attempt_is_judged_by_its_verdicts_with_format():
    rows = family(0, True, ["correct", "correct", "wrong", None], []) + family(1, False, [None], [])
    rows += family(2, False, ["correct"], []) + family(3, False, ["wrong"], [])
    found = [(attempt.right, attempt.share) for attempt in judged_attempts(rows)]
    assert found == [(True, 2 / 3), (False, 0.0), (False, 1.0), (False, 0.0)]


def test_tuning_says_on_how_many_problems_when_there_are_fewer_than_asked(tmp_path: Path, monkeypatch):
    rows = [
        {"id": "p/a0", "kind": "attempt", "parent": None, "text": "x", "outcome": "correct", "verdict": None},
        {"id": "p/a0/v0", "kind": "verdict", "parent": "p/a0", "text": "y", "outcome": None, "verdict": "correct"},
    ]
    fakes = {"sample": lambda *_: None, "connect": lambda *_: None, "sample_files": lambda *_: ["file"]}
    for name, fake in fakes.items():
        monkeypatch.setattr(tune, name, fake)
    monkeypatch.setattr(tune, "problems_in", lambda *_: [rows])
    monkeypatch.setattr(Session, "rewards", lambda self: [])
    heard: list[str] = []
    config = load_config(None, [f"run.directory={tmp_path}", "stage1.prompts=30", "stage1.per_prompt_and_class=2"])
    found = tune.tune_sampling(config, [1.0], 40, heard.append)
    assert heard[0] == "30 problems: there are no more, or stage1.prompts=30 takes no more" and found["problems"] == 30
    assert {score["score"] for score in found["scores"]} == {0.5}  # one right attempt of two wanted, at every threshold
    heard.clear()
    assert tune.tune_sampling(config, [1.0], 20, heard.append)["problems"] == 20 and heard[0].startswith("temperature 1")
