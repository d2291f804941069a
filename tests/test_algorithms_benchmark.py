"""The comparison of algorithms: its commands load, its table and claims follow from rows."""

from pathlib import Path

import pytest

from benchmarks.algorithms import METHODS, STEPS, claims, commands, finished, result, settings, spread, table
from srl.config import ConfigError, load_config
from srl.driver.policy import recipe_functions
from srl.driver.reproduce import variant_overrides
from srl.observe.run_directory import RunDirectory


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_list_of_commands_that_load_with_the_same_budget(name):
    lines = commands(name, 7, Path("/runs"), ["rl.group=4"])
    configs = [settings(line) for line in lines]
    assert all(config.run.seed == 7 and config.rl.group == 4 and config.rl.prompts == 32 for config in configs)
    assert lines[0][0] == "run" and configs[0].run.name == "seed-7" and configs[0].rl.steps == STEPS
    trained = [config for line, config in zip(lines, configs, strict=True) if line[0] == "rl"]
    for config in configs:
        recipe_functions(config)
    if trained:
        assert sum(config.rl.steps for config in trained) == STEPS and lines[-1][:3] == ["evaluate", "--model", "rl"]
        assert lines[-1][3:] == lines[-2][1:]  # the model that was trained last, in its own run


def test_samples_per_problem_are_the_same_for_all_recipes():
    assert {config.rl.group for name in METHODS for config in map(settings, commands(name, 0, Path("/runs"), []))} == {8}


def test_the_main_run_trains_with_the_recipe_grpo():
    assert load_config(None, ["recipe=grpo"]).model_dump(exclude={"run"}) == load_config(None, []).model_dump(exclude={"run"})


def test_the_runs_are_those_that_the_papers_tables_are_made_of():
    for name in ("ppo", "dpo", "single-turn-raft", "single-turn-dpo", "single-turn-ppo"):
        main, trained, _ = commands(name, 2, Path("/runs"), [])

        def configure(more, main=main):
            return load_config("tiny.yaml", [*main[1:], *more])

        assert configure(variant_overrides(name, configure)) == settings(trained)


def test_a_second_stage_starts_where_the_first_ended():
    _, first, second, _ = map(settings, commands("score", 0, Path("/runs"), []))
    assert first.run.name == "seed-0-score-1" and first.rl.start == "base"
    assert second.run.name == "seed-0-score-2" and second.rl.start == "/runs/seed-0-score-1/checkpoints/rl"


def test_what_is_finished_is_not_run_again_and_runs_of_other_settings_are_refused(tmp_path):
    main, trained, measured = commands("ppo", 0, tmp_path, [])
    assert not finished(main) and not finished(trained) and not finished(measured)
    run = RunDirectory(settings(trained))
    with run.phase("rl"):
        pass
    assert finished(trained) and not finished(measured)
    run.add_row({"method": "rl", "benchmark": "chains"}, [])
    assert finished(measured) and result("rl", measured)["benchmark"] == "chains"
    with pytest.raises(ConfigError, match="seed-0-ppo holds a run of another configuration"):
        finished(commands("ppo", 0, tmp_path, ["rl.prompts=64"])[1])


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
