"""The data card: what was sampled, kept and dropped."""

from collections import Counter

import pytest

from srl.pipelines.card import (
    SHARES,
    add,
    bucket,
    card_text,
    data_card,
    difficulty_of,
    histogram_bars,
    problem_statistics,
    tenth,
)
from srl.pipelines.render import messages, render
from tests.demonstration_rows import RIGHT, SLIP, config, family, path

SAMPLED = family(0, False, ["wrong", "correct", None], [True, False]) + family(1, True, ["correct", "correct"], [])


def test_the_data_card_counts_every_kind_of_sample():
    found = problem_statistics(SAMPLED)
    assert found["counts"] == {
        "attempts": 2, "attempts correct": 1, "attempts incorrect": 1, "revisions": 2, "revisions accepted": 1, "verdicts": 5,
        "verdicts accepted": 3, "verdicts without format": 1,
    }  # fmt: skip
    assert found["verdicts on wrong attempts"] == {"wrong": 1, "correct": 1, "no format": 1}
    assert found["verdicts on correct attempts"] == {"correct": 2}
    assert found["verdicts of one correct attempt"] == {"all alike": 1}
    assert found["verdicts of one wrong attempt"] == {"not all alike": 1}
    assert found["revisions of wrong attempts"] == {"correct": 1, "incorrect": 1}
    assert found["problems by share of right attempts"] == {"0.5": 1}


def test_difficulty_is_the_share_of_right_attempts():
    assert difficulty_of(SAMPLED) == {"prompt_id": "p", "attempts": 2, "right": 1, "share": 0.5}


def test_a_problem_counts_in_the_tenth_of_its_share_and_all_right_in_the_last():
    assert [tenth(right, 4) for right in range(5)] == ["0.0", "0.2", "0.5", "0.7", "0.9"]
    assert [tenth(right, 10) for right in (2, 3, 6, 7, 9, 10)] == ["0.2", "0.3", "0.6", "0.7", "0.9", "0.9"]
    counts = {"0.0": 9, "0.2": 36, "0.9": 5, "1.0": 40}  # 1.0: as in cards of earlier versions
    assert histogram_bars(SHARES, counts) == {(0.0, 0.1): 9, (0.2, 0.3): 36, (0.9, 1.0): 45}
    assert histogram_bars("tokens per attempt", {"28": 1, "32": 2, "896": 3}) == {(28, 32): 1, (32, 40): 2, (896, 1024): 3}


def test_statistics_of_parts_add_up():
    total = {}
    for _ in range(2):
        add(total, problem_statistics(SAMPLED))
    assert total["counts"]["verdicts"] == 10


@pytest.mark.parametrize(("tokens", "least"), [(0, 0), (3, 0), (31, 28), (32, 32), (71, 64), (1023, 896), (1024, 1024)])
def test_bars_of_a_length_histogram_grow_with_the_length(tokens, least):
    assert bucket(tokens) == str(least)


def test_the_card_as_text_has_every_number_and_marks_what_is_trained(chat):
    shown = {"id": "p/a0", "class": "D1", "messages": messages(render("D1", path("D1", chat), config(), chat), chat)}
    card = data_card(config(), problem_statistics(SAMPLED), {"balance of the mix": 7}, {"classes": Counter(D1=3)}, [shown])
    text = card_text(card)
    assert "| balance of the mix | 7 | 100.0 |" in text and "| verdicts accepted | 3 |\n" in text and "| D1 | 3 | 100.0 |" in text
    assert f"{RIGHT}   <- trained" in text and f"{SLIP}   <- trained" not in text
