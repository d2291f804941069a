"""What the soak computes from what it has seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import by_role, role
from benchmarks.soak import ENOUGH_H, LATER_S, LEAK, QUIET_S, RECOVERY_S, WARM_S, longest_gap, memory_slopes, problems, slope
from benchmarks.steps import Steps, tail

MIB = 2**20


def test_a_slope_is_taken_within_processes_that_have_different_levels():
    # Both grow by 2 an hour; the second begins 100 higher and later, which would look like growth between them.
    assert slope([1, 1, 2, 2], [0, 1, 5, 6], [10, 12, 110, 112]) == {"slope": 2.0, "standard error": 0.0}


def test_the_error_of_a_slope_comes_from_the_processes_not_from_the_points():
    # Growth of 0 and of 2: mean 1; scores -0.5 and 0.5, spread 1: sqrt(2 * 0.5) / 1.
    found = slope([1, 1, 2, 2], [0, 1, 0, 1], [5, 5, 5, 7])
    assert found == {"slope": 1.0, "standard error": 1.0}
    many = slope([1] * 100 + [2] * 100, [0, 1] * 100, [5, 5] * 50 + [5, 7] * 50)
    assert many == {"slope": 1.0, "standard error": 1.0}


def test_one_process_has_a_slope_without_an_error_and_one_point_has_none():
    assert slope([1, 1], [0, 1], [3, 4]) == {"slope": 1.0, "standard error": None}
    assert slope([1], [0], [3]) == {"slope": None, "standard error": None}


def row(pid: int, s: float, mebibytes: float, age: float) -> dict:
    counts = {"files": 9, "threads": 4}
    return {"s": s, "role": "learner", "pid": pid, "age": age, "resident": mebibytes * MIB, "private": MIB, **counts}


def test_memory_while_a_process_starts_is_no_leak():
    rows = [row(1, 0, 50, 0), row(1, 1800, 500, WARM_S + 1), row(1, 3600, 510, WARM_S + 1800)]
    found = memory_slopes(rows)["learner"]
    assert found["MiB per hour"]["slope"] == pytest.approx(20) and found["private MiB per hour"]["slope"] == 0
    assert found["most MiB"] == 510 and found["processes"] == 1


def test_what_fills_up_within_ten_minutes_grows_no_more_after_them():
    ages, mebibytes = [WARM_S + 1, LATER_S + 1, LATER_S + 1801], [500, 600, 600]
    found = memory_slopes([row(1, age, size, age) for age, size in zip(ages, mebibytes, strict=True)])["learner"]
    assert found["MiB per hour"]["slope"] > 0 and found["MiB per hour after 600 s"]["slope"] == 0


def test_the_longest_time_without_a_step():
    assert longest_gap([0.0, 3.0, 4.0, 9.5]) == 5.5 and longest_gap([0.0]) == 0.0
    assert longest_gap([0.0, 3.0, 4.0, 9.5], broken_by=[5.0]) == 3.0
    assert longest_gap([0.0, 3.0, 4.0, 9.5], broken_by=[9.0, 8.0]) == 4.0  # nothing came before it either
    assert longest_gap([0.0, 3.0, 4.0, 4.5], broken_by=[0.0]) == 1.0  # the start


def write(run: Path, *steps: tuple[int, float]) -> None:
    lines = [{"phase": "rl", "step": step, "seconds": seconds} for step, seconds in steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_step_done_again_after_a_kill_is_the_next_one_but_no_new_one(tmp_path: Path):
    steps = Steps(tmp_path)
    assert steps.look() == 0 and steps.highest == -1
    write(tmp_path, (0, 1.1), (1, 1.2), (2, 1.3))
    assert steps.look() == 3
    steps.killed("learner")
    write(tmp_path, (0, 1.1))  # what came after the checkpoint is forgotten
    assert steps.look() == 0
    write(tmp_path, (0, 1.1), (1, 1.4), (2, 1.5))
    assert steps.look() == 2 and steps.highest == 2
    assert "next step after s" in steps.kills[0] and "new step after s" not in steps.kills[0]
    write(tmp_path, (0, 1.1), (1, 1.4), (2, 1.5), (3, 1.3))
    assert steps.look() == 1 and steps.kills[0]["new step after s"] >= 0


def test_only_whole_lines_of_stage_2_are_steps(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    assert tail(file) == []
    step = {"phase": "rl", "step": 0, "seconds": 1.5}
    file.write_text(json.dumps(step) + "\n" + json.dumps({"phase": "handshake", "step": 0}) + "\n" + '{"phase": "rl", "st')
    assert tail(file) == [step]


GOOD = {
    "steps": 3, "steps recorded once": True, "stopped when asked after s": 2.0, "prompts lost": 0, "prompts repeated": 0,
    "ended by itself": [], "processes left behind": [], "longest time without a step s": RECOVERY_S,
    "longest time without a step and without a kill s": QUIET_S, "memory": {"learner": {"verdict": "no leak"}},
}  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        {"prompts lost": 1},
        {"prompts repeated": 1},
        {"ended by itself": ["x"]},
        {"processes left behind": ["x"]},
        {"stopped when asked after s": None},
        {"steps": 0},
        {"steps recorded once": False},
        {"longest time without a step and without a kill s": QUIET_S + 1},
        {"longest time without a step s": RECOVERY_S + 1},
        {"memory": {"driver": {"verdict": "no leak"}, "learner": {"verdict": "leak"}}},
    ],
)
def test_a_soak_fails_for_each_thing_that_must_not_happen(bad: dict):
    assert problems(GOOD) == [] and len(problems({**GOOD, **bad})) == 1


def lives(hours: float, *growths: float) -> list[dict]:
    """Samples of processes that are watched so long after LATER_S and whose private memory grows by so many MiB an hour."""
    return [
        {**row(pid, 3600 * at, 700, LATER_S + 1 + 3600 * at), "private": (500 + growth * at) * MIB}
        for pid, growth in enumerate(growths)
        for at in (0.0, hours / 2, hours)
    ]


# Of 60 and 100, each 20 from their mean, the standard error is 20: 80 - 2 * 20 < 64. Of 110 and 120 it is 5: 115 - 2 * 5 > 64.
@pytest.mark.parametrize(
    ("growths", "verdict"),
    [
        ([0, 0], "no leak"),
        ([LEAK - 1, LEAK - 1], "no leak"),
        ([LEAK + 1, LEAK + 1], "leak"),
        ([60, 100], "no leak"),
        ([110, 120], "leak"),
        ([LEAK + 1], "leak"),
        ([-100, -90], "no leak"),
    ],
)
def test_growth_is_a_leak_where_it_is_faster_than_the_bound_and_surely_so(growths: list[float], verdict: str):
    found = memory_slopes(lives(1.0, *growths))["learner"]
    assert found["verdict"] == verdict and found["hours watched"] == len(growths)


def test_growth_in_short_lives_and_in_early_ones_is_not_judged():
    short = memory_slopes(lives(0.4 * ENOUGH_H, 5 * LEAK, 5 * LEAK))["learner"]
    assert short["verdict"] == "too short to tell" and short["private MiB per hour"]["slope"] == pytest.approx(5 * LEAK)
    early = [{**sample, "age": WARM_S + sample["age"] / 100} for sample in lives(2.0, 5 * LEAK)]
    assert memory_slopes(early)["learner"]["verdict"] == "too short to tell"


def test_processes_are_known_by_what_they_call_themselves():
    assert role("ray::RolloutWorker.collect") == "rollout" and role("python -m srl.reward.worker 5.0 2048") == "grading"
    assert role("/x/raylet --log_dir=/tmp") == "ray" and role("/x/gcs_server --log_dir=/tmp") == "head"


def test_a_driver_that_is_gone_has_no_processes():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert [found.pid for found in by_role(process.pid)["driver"]] == [process.pid]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert by_role(process.pid) == {}  # not waited for yet
    process.wait()
    process.stdin.close()
    assert by_role(process.pid) == {}
