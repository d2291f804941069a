"""The comparison of algorithms: its commands load, its table and claims follow from rows."""

from pathlib import Path

import pytest

from benchmarks.algorithms import METHODS, STEPS, claims, commands, spread, table
from srl.config import load_config
from srl.driver.policy import recipe_functions


@pytest.mark.parametrize("name", ["ift", *METHODS])
def test_every_method_is_a_list_of_commands_that_load_with_the_same_budget(name):
    lines = commands(name, 7, Path("/runs"), ["rl.prompts=16"])
    configs = [load_config(None, [word for word in line if "=" in word]) for line in lines]
    assert all(config.run.seed == 7 and config.rl.prompts == 16 for config in configs)
    trained = [config for line, config in zip(lines, configs, strict=True) if line[0] == "rl"]
    for config in trained:
        recipe_functions(config)
    if name != "ift":
        assert sum(config.rl.steps for config in trained) == STEPS and lines[-1][:3] == ["evaluate", "--model", "rl"]
        assert lines[-1][3:] == lines[-2][1:]  # the model that was trained last, in its own run


def test_a_second_stage_starts_where_the_first_ended():
    first, second, _ = commands("score", 0, Path("/runs"), [])
    assert "run.name=score-score-1-0" in first and "rl.start=base" in first
    assert "rl.start=/runs/score-score-1-0/checkpoints/rl" in second


ROW = {"turn1": 50.0, "final": 60.0, "delta": 10.0, "i2c": 12.0, "c2i": 2.0, "verdict_correct": 90.0, "verdict_wrong": None}


def test_the_table_shows_mean_and_range_over_seeds():
    lines = table({"IFT": [ROW, ROW | {"final": 64.0}]}).splitlines()
    assert lines[2].startswith("| IFT | 50.0 [50.0, 50.0] | 62.0 [60.0, 64.0] |") and lines[2].endswith("| - |")
    assert spread([None, 1.0, 2.0]) == "1.5 [1.0, 2.0]"


def test_claims_are_decided_by_means_and_only_where_both_methods_were_run():
    rows = {"IFT": [ROW], "IFT + PPO": [ROW | {"final": 64.9}], "IFT + GRPO, reward plan 1": [ROW | {"turn1": 40.0}]}
    found = claims(rows)
    assert {claim: ok for claim, (ok, _) in found.items()} == {
        "PPO's final answer is at least 5 points above IFT's": False,
        "reward plan 1 lowers the first attempt (here by at least 1 point)": True,
    }
    assert found["PPO's final answer is at least 5 points above IFT's"][1] == "64.9 against 60.0"
