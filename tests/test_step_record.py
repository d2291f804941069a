from types import SimpleNamespace

import pytest

from srl.driver import step_record
from srl.driver.step_record import Clock, step_line

METRICS = {"turn1": 50, "final": 87.5, "entropy": 0.25, "groups_without_signal": 3, "tokens_per_second": 1234.5, "seconds": 9.87}


def test_a_steps_line_tells_of_a_kl_only_where_there_is_one():
    rest = "entropy 0.250  silent groups   3  1,234 tokens/s  9.9 s"
    assert step_line(4, 25, METRICS) == f"step   5/25  turn 1  50.0  final  87.5  {rest}"
    assert step_line(4, 25, METRICS | {"kl": 0.0}) == f"step   5/25  turn 1  50.0  final  87.5  kl 0.0000  {rest}"


def test_parts_that_come_again_in_a_step_are_added_up(monkeypatch):
    times = iter([0.0, 2.0, 3.0, 7.0])
    monkeypatch.setattr(step_record, "time", SimpleNamespace(monotonic=lambda: next(times)))
    clock = Clock()
    for name in ("rollout_s", "reward_s", "rollout_s"):
        clock.lap(name)
    assert clock.laps == pytest.approx({"rollout_s": 6.0, "reward_s": 1.0})
