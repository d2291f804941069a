"""What the simulation of sampling ahead does when weights come, worked by hand: groups take 1 s, weights 0.25 s."""

import random

import pytest

from benchmarks.rl_step import WAYS, Engines, simulated

EVEN = {"steps": 4, "batch": 1, "engines": 2, "train_s": 0.5, "sync_s": 0.25, "spread": 0.0, "seed": 0}
UNEVEN = {"steps": 50, "batch": 16, "engines": 8, "train_s": 2.0, "sync_s": 0.2, "spread": 0.8, "seed": 0}


# Group 0 ends at 1, group 1 at 2, groups 2 and 3 wait in line.
# By store the first engine loads until 1.25 and has done group 2 when the second is there, at 2 + 0.25; group 3 begins then.
# By broadcast the first waits for the second. With `continue` both groups end 0.25 later, and nothing has ended or begun.
@pytest.mark.parametrize(
    ("way", "now", "finished", "busy"),
    [
        ("finish by store", 2.25, {0, 1, 2}, [(3.25, 3)]),
        ("finish by broadcast", 2.25, {0, 1}, [(3.25, 2), (3.25, 3)]),
        ("continue", 0.25, set(), [(1.25, 0), (2.25, 1)]),
    ],
)
def test_engines_end_wait_or_go_on_when_weights_come(way: str, now: float, finished: set[int], busy: list):
    engines = Engines(2, 0.0, 0.25, random.Random(0), queue=[2, 3], busy=[(1.0, 0), (2.0, 1)])
    engines.load(way)
    assert (engines.now, engines.finished, engines.busy) == (now, finished, busy)


# Both engines: groups 0 and 1 until 1; training until 1.5, weights until 1.75; group 2 until 2.75, group 1 trained until 2.25.
# `continue`: weights until 2.5, group 2 ends 3.0, trained until 3.5; group 3 has run from 2.5 to 3.5; 3.75 + 0.5 + 0.25.
# `finish`: weights when group 2 has ended, until 3; group 3 from there to 4, weights until 4.25; trained and sent until 5.
@pytest.mark.parametrize(("way", "seconds"), [("continue", 4.5), ("finish by store", 5.0), ("finish by broadcast", 5.0)])
def test_a_step_that_finishes_first_holds_up_the_next(way: str, seconds: float):
    found = simulated(way, 1, **EVEN)
    assert found == {"seconds": seconds, "oldest": 1, "mean_age": 0.75}


def test_without_sampling_ahead_no_group_runs_when_weights_come():
    # Each step: 1 s of two groups side by side, 0.5 s of training, 0.25 s of weights.
    assert {simulated(way, 0, **EVEN)["seconds"] for way in WAYS} == {4 * 1.75}


def test_the_more_engines_wait_the_less_sampling_ahead_gains():
    seconds = {way: simulated(way, 2, **UNEVEN)["seconds"] for way in WAYS}
    alone = simulated("continue", 0, **UNEVEN)["seconds"]
    assert seconds["continue"] < seconds["finish by store"] < seconds["finish by broadcast"] < alone
