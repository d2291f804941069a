"""Bootstrap, McNemar and paired comparison against independent implementations."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.evaluation.intervals import bootstrap, compare_paired, interval, mcnemar, ratio


def test_the_interval_of_a_mean_agrees_with_a_plain_loop():
    rng = random.Random(1)
    values = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(80)]
    means = sorted(sum(rng.choices(values, k=80)) / 80 for _ in range(4000))
    low, high = interval(100 * bootstrap(np.array(values)[:, None], 4000, seed=3)[:, 0] / 80)
    assert low == pytest.approx(100 * means[100], abs=1) and high == pytest.approx(100 * means[3900], abs=1)


def test_the_interval_of_a_share_agrees_with_the_normal_approximation():
    values = np.array([1.0] * 300 + [0.0] * 200)[:, None]  # 60 %, standard error sqrt(0.24 / 500) = 2.19 points
    low, high = interval(100 * bootstrap(values, 4000, 0)[:, 0] / 500)
    assert low == pytest.approx(60 - 1.96 * 2.19, abs=0.5) and high == pytest.approx(60 + 1.96 * 2.19, abs=0.5)


def test_intervals_repeat_for_a_seed_and_have_no_width_when_all_are_right():
    values = np.array([0.0, 1.0, 0.5, 0.5, 1.0])[:, None]
    assert (bootstrap(values, 200, 5) == bootstrap(values, 200, 5)).all()
    assert interval(bootstrap(np.ones((4, 1)), 200, 0)[:, 0] / 4) == [1.0, 1.0]


def test_a_ratio_that_a_resample_cannot_form_has_no_interval():
    assert interval(ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))) is None


def test_bootstrap_refuses_no_problems():
    with pytest.raises(ValueError, match="no problems"):
        bootstrap(np.zeros((0, 2)), 10, 0)


@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemar_equals_counting_all_coin_flips(gained, lost):
    flips = [sum(coins) for coins in itertools.product((0, 1), repeat=gained + lost)]
    as_extreme = sum(abs(heads - (gained + lost) / 2) >= abs(gained - lost) / 2 for heads in flips)
    assert mcnemar(gained, lost) == pytest.approx(as_extreme / len(flips))


def test_mcnemar_of_known_counts():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == 2 / 2**10
    assert mcnemar(50, 4) < 1e-9


def test_paired_comparison_of_five_problems_worked_by_hand():
    first = {"a": (1, 1), "b": (0, 1), "c": (1, 2), "d": (0, 1), "e": (1, 3), "only here": (1, 1)}
    second = {"a": (1, 1), "b": (1, 1), "c": (2, 2), "d": (0, 1), "e": (0, 3), "only there": (0, 1)}
    found = compare_paired(first, second)
    assert found["problems"] == 5 and found["difference"] == 23.33  # (0 + 100 + 50 + 0 - 33.3) / 5
    assert (found["better"], found["worse"], found["p"]) == (2, 1, 1.0)
    assert -33.33 <= found["ci95"][0] < found["ci95"][1] <= 100
    assert compare_paired(second, first)["difference"] == -23.33


def test_paired_comparison_is_tighter_than_two_intervals_and_the_same_in_any_order():
    rng = random.Random(0)
    first = {str(index): (int(rng.random() < 0.6), 1) for index in range(400)}
    second = {key: (1, 1) if int(key) % 20 == 0 else value for key, value in first.items()}
    found = compare_paired(first, second)
    assert found == compare_paired(dict(reversed(first.items())), dict(reversed(second.items())))
    assert found["ci95"][0] > 0 and found["ci95"][1] - found["ci95"][0] < 4
    assert compare_paired(first, first)["ci95"] == [0.0, 0.0]


def test_comparison_without_common_problems_is_refused():
    with pytest.raises(ValueError, match="no problem in common"):
        compare_paired({"a": (1, 1)}, {"b": (1, 1)})


def test_an_interval_leaves_out_a_fortieth_on_either_side():
    assert interval(np.arange(1001.0)) == [25.0, 975.0]


def test_a_ratio_is_per_cent_and_nothing_where_there_is_nothing_to_divide_by():
    found = ratio(np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 4.0, 0.0, 0.0]))
    assert found[:2].tolist() == [100.0, 25.0] and np.isnan(found[2:]).all()


def test_a_problem_is_better_or_worse_by_however_little():
    first, second = {"a": (100, 200), "b": (7, 200), "c": (1, 2)}, {"a": (101, 200), "b": (6, 200), "c": (1, 2)}
    found = compare_paired(first, second)
    assert (found["better"], found["worse"], found["difference"]) == (1, 1, 0.0)
