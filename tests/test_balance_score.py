"""B-STaR's balance score by hand."""

import pytest

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
        (0.5, 2, 1.0 * 2 / 4),
        (1.0, 2, 0.5 * 1 / 1),
        (1.0, 1, 1.0),
        (1.1, 1, 0.0),
    ],
)
def test_enough_different_right_samples_and_little_else(threshold, wanted, expected):
    assert balance_score(ATTEMPTS, threshold, wanted) == pytest.approx(expected)


def test_an_attempt_is_judged_by_its_verdicts_with_format():
    rows = family(0, True, ["correct", "wrong", None], []) + family(1, False, [None], [])
    assert [(attempt.right, attempt.share) for attempt in judged_attempts(rows)] == [(True, 0.5), (False, 0.0)]
