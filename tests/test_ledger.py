"""The ledger of prompts: exactly once, and never older than the bound."""

import random

from hypothesis import given
from hypothesis import strategies as st

from srl.driver.ledger import Ledger, Stream
from srl.tasks.problems import Problem

# Why no age exceeds the bound. Before step s let at most (t + ahead - s + 1) batches of those in flight have been admitted up to
# step t, for every t. `choose` leaves at most (t + ahead - s) of them, which is the same for step s + 1; and what is admitted
# then makes at most (ahead + 1) batches in flight. For t = s - ahead nothing is left after step s.


def play(ledger: Ledger, steps: range, rng: random.Random, stop: int | None = None) -> dict[int, tuple[int, int]]:
    """Run steps with groups that finish in random order; position -> (admitted, trained). At `stop` half a step is lost."""
    trained: dict[int, tuple[int, int]] = {}
    running: set[int] = set()
    finished: set[int] = set()
    end = steps.stop * ledger.batch
    for step in steps:
        running |= set(ledger.admit(step, end)) | (set(ledger.in_flight) - running - finished)
        while (chosen := ledger.choose(step, finished)) is None:
            position = rng.choice(sorted(running))
            running.remove(position)
            finished.add(position)
        if step == stop:
            return trained
        for position in chosen:
            assert position not in trained
            trained[position] = ledger.in_flight[position], step
        finished -= set(chosen)
        ledger.settle(dict.fromkeys(chosen, "trained"))
    return trained


@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 12), st.randoms(use_true_random=False))
def test_every_position_is_trained_once_and_never_later_than_the_bound(batch, ahead, steps, rng):
    trained = play(Ledger(batch, ahead), range(steps), rng)
    assert sorted(trained) == list(range(batch * steps))
    assert all(0 <= step - admitted <= ahead for admitted, step in trained.values())


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 10), st.data())
def test_a_run_that_is_cut_off_anywhere_trains_the_same_positions(batch, ahead, steps, data):
    rng, stop = random.Random(data.draw(st.integers(0, 9))), data.draw(st.integers(0, steps - 1))
    saved = data.draw(st.integers(0, stop))
    ledger = Ledger(batch, ahead)
    before = play(ledger, range(saved), rng)
    before |= {}
    record = ledger.to_record()
    play(ledger, range(saved, steps), rng, stop)  # lost
    again = Ledger(batch, ahead)
    again.restore(record)
    again.begin_again(saved)
    after = play(again, range(saved, steps), rng)
    assert not before.keys() & after.keys()
    assert sorted([*before, *after]) == list(range(len(before) + len(after))) and again.settled["trained"] == len(after) + len(
        before
    )
    assert len(before) + len(after) >= batch * steps


def test_with_bound_zero_each_step_trains_what_it_admitted():
    ledger = Ledger(batch=3, ahead=0)
    assert ledger.admit(0, 9) == [0, 1, 2] and ledger.admit(0, 9) == []
    assert ledger.choose(0, {0, 2}) is None and ledger.choose(0, {2, 1, 0}) == [0, 1, 2]
    ledger.settle({0: "trained", 1: "filtered", 2: "trained"})
    assert ledger.admit(1, 5) == [3, 4] and ledger.settled == {"trained": 2, "filtered": 1}
    assert ledger.choose(1, {3, 4}) == [3, 4]  # the last step takes what is left


def test_one_step_ahead_by_hand():
    ledger = Ledger(batch=2, ahead=1)
    assert ledger.admit(0, 8) == [0, 1, 2, 3]
    # Step 0 takes whatever two are first: nothing is due yet.
    assert ledger.choose(0, {3, 1}) == [1, 3]
    ledger.settle({1: "trained", 3: "trained"})
    assert ledger.admit(1, 8) == [4, 5]
    # 0 and 2 were admitted in step 0 and must not wait beyond step 1.
    assert ledger.choose(1, {4, 5, 0}) is None and ledger.choose(1, {4, 5, 0, 2}) == [0, 2]


def test_old_ones_that_later_steps_can_hold_are_not_waited_for():
    ledger = Ledger(batch=2, ahead=2)
    assert ledger.admit(0, 4) == [0, 1, 2, 3]
    ledger.settle(dict.fromkeys(ledger.choose(0, {0, 1}), "trained"))
    assert ledger.admit(1, 8) == [4, 5, 6, 7]
    assert ledger.choose(1, {4, 5}) == [4, 5]  # step 2 has room for 2 and 3


def test_after_a_restart_what_was_in_flight_is_as_new_as_the_policy_that_samples_it_again():
    ledger = Ledger(batch=1, ahead=1)
    ledger.admit(0, 2)
    again = Ledger(batch=1, ahead=1)
    again.restore(ledger.to_record())
    assert again.begin_again(7) == [0, 1] and again.in_flight == {0: 7, 1: 7} and again.next == 2


def test_the_stream_shows_every_problem_once_before_any_again():
    problems = [Problem(str(n), "q", "1") for n in range(5)]
    stream = Stream(problems, seed=3)
    shown = [stream.at(position).prompt_id for position in range(15)]
    for epoch in range(3):
        assert sorted(shown[5 * epoch : 5 * epoch + 5]) == ["0", "1", "2", "3", "4"]
    assert shown[:5] != shown[5:10]
    again = Stream(problems, seed=3)
    assert [again.at(position).prompt_id for position in reversed(range(15))] == shown[::-1]


def test_late_arrivals_do_not_stand_in_for_the_old_nor_the_old_for_them_whatever_the_numbers_of_the_steps():
    ledger = Ledger(batch=2, ahead=2, next=6, in_flight={0: 7} | dict.fromkeys(range(1, 6), 8))
    # Step 8 must take 2 of the 6 (steps 9 and 10 hold 4 of those admitted up to 8), and none of 7: step 9 holds it.
    assert ledger.choose(8, {2, 4}) == [2, 4] and ledger.choose(8, {3}) is None
    # Nothing of step 7 is left to wait for.
    assert ledger.choose(8, set(range(6))) == [0, 1]
