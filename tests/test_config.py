import argparse
from pathlib import Path

import pytest
import yaml

from srl.config import CONFIGS, Config, ConfigError, load_config, load_run, valid_keys
from srl.main import ASKS_A_MODEL, OF_A_RUN, configuration, main
from srl.observe.run_directory import RunDirectory, identity, placement

SHIPPED = sorted(CONFIGS.glob("*.yaml"))

GPUS = ["learner.gpus=1", "rollout.gpus=1"]


def refused(*overrides: str, path: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_need_no_file():
    assert load_config(None, []) == Config()


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("rl: {steps: 7}\nobjective: {kl: 0.5}\nsft:\n  epochs: 9\n")
    config = load_config(str(tmp_path / "c.yaml"), ["rl.steps=8"])
    assert (config.rl.steps, config.objective.kl, config.sft.epochs, config.rl.group) == (8, 0.5, 9, Config().rl.group)


def test_overrides_are_read_as_yaml():
    config = load_config(
        None,
        [
            "objective.kl=1e-3",
            "objective.share_attempt=true",
            "prompts.system=",
            "task.name=file",
            "task.train=t.jsonl",
            "task.test.math=m.jsonl",
            'prompts.joiner="\\n\\n"',
        ],
    )
    assert (config.objective.kl, config.objective.share_attempt, config.prompts.system) == (0.001, True, "")
    assert config.task.test == {"math": "m.jsonl"} and config.prompts.joiner == "\n\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{question} In a box.", "{question} In a box."),
        ("{question}", "{question}"),
        ("Solve: {question} #1", "Solve: {question} #1"),
        ("Solve\n{question}", "Solve\n{question}"),
        ("[1] {question}", "[1] {question}"),
        ("'It''s {question}'", "It's {question}"),
        ('"Solve\\n{question}"', "Solve\n{question}"),
        ("'one' or 'two' {question}", "'one' or 'two' {question}"),
    ],
)
def test_text_is_taken_as_it_is_or_without_its_quotes(value: str, text: str):
    assert load_config(None, [f"prompts.question={value}"]).prompts.question == text


def test_the_last_of_two_overrides_counts():
    assert load_config(None, ["rl.steps=1", "rl.steps=2"]).rl.steps == 2


def test_shorthands_stand_for_settings_of_the_run():
    run = load_config(None, ["fresh=true", "seed=3", "name=mine"]).run
    assert (run.fresh, run.seed, run.name) == (True, 3, "mine")


@pytest.mark.parametrize("text", ["1", "007", "1e3", "2026-11-22", "on", "null"])
def test_a_name_may_look_like_a_number_or_a_date(text: str, tmp_path: Path):
    run = [f"run.directory={tmp_path}", f"name={text}"]
    config = load_config(None, [*run, "stage1.teacher=12"])
    assert (config.run.name, config.stage1.teacher) == (text, "12")
    RunDirectory(config).close()
    assert load_run(tmp_path / text, run[:1]) == config  # the file has it as text too
    assert load_config(None, ["name='1'"]).run.name == "1"
    assert refused("run.name=[1]").startswith("run.name='[1]': String should match pattern")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("rl.learning_rat=1", "rl.learning_rate"),  # sft has one too
        ("stage1.temprature=1", "stage1.temperature"),  # evaluate has one too
        ("evaluate.temprature=1", "evaluate.temperature"),
        ("rollout.temperature=1", "stage1.temperature"),  # RL samples at 1: not a setting
        ("rolout.workers=2", "rollout"),
        ("temperature=1", "stage1.temperature"),  # section forgotten
        ("sft.kl=1", "objective.kl"),  # wrong section
        ("sft.warmup_steps=1", "sft.warmup"),
        ("nam=1", "name"),  # shorthands
        ("frsh=1", "fresh"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(override, nearest):
    message = refused(override)
    assert message.startswith(f"unknown setting {override.split('=')[0].split('.workers')[0]}=")
    assert message.endswith(f"; did you mean {nearest}?")


def test_an_unknown_key_that_resembles_nothing_lists_the_sections():
    assert refused("zzz=1") == f"unknown setting zzz=1; sections are {', '.join(Config.model_fields)}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.prompts=ten", "rl.prompts='ten': Input should be a valid integer"),
        ("rl.prompts=1.5", "rl.prompts=1.5: Input should be a valid integer"),
        ("rl.prompts=0", "rl.prompts=0: Input should be greater than or equal to 1"),
        ("sft.learning_rate=-1", "sft.learning_rate=-1: Input should be greater than 0"),
        ("run.name=../up", "run.name='../up': String should match"),
        (f"run.name={101 * 'a'}", f"run.name={101 * 'a'!r}: String should have at most 100 characters"),
        ("rollout.timeout_s=.inf", "rollout.timeout_s=inf: Input should be a finite number"),
        ("sft.learning_rate=.nan", "sft.learning_rate=nan: Input should be a finite number"),
        ("objective.kl_by={verdict: .inf}", "objective.kl_by.verdict=inf: Input should be a finite number"),
        ("rl=3", "rl=3: rl is a section, with settings such as rl.start"),
        ("rl.prompts.x=1", "rl.prompts={'x': 1}: Input should be a valid integer"),
    ],
)
def test_a_wrong_value_is_shown_with_its_field(override, message):
    assert refused(override).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.max_response_tokens=512"], "rollout.max_response_tokens=512 leaves no room for a prompt in model.max_length="),
        (["rl.mini_batches=7", "rl.prompts=64"], "rl.prompts=64 is not a multiple of rl.mini_batches=7"),
        (["learner.offload_optimizer=true"], "learner.offload_optimizer=true needs learner.gpus > 0"),
        (
            ["rl.previous_share=0.1", "rl.group=4"],
            "rl.previous_share=0.1 of rl.group=4 is 0 trajectories: a mixture needs both",
        ),
        (["rl.previous_share=0.9", "rl.group=4"], "rl.previous_share=0.9 of rl.group=4 is 4 trajectories"),
        (["rollout.tensor_parallel=2"], "rollout.tensor_parallel=2 needs rollout.gpus >= it, found 0.0"),
        (["task.name=file"], "task.name=file needs task.train and at least one entry in task.test"),
        (["task.train=t.jsonl"], "task.train=t.jsonl needs task.name=file"),
        (["task.validation=v.jsonl"], "task.validation=v.jsonl needs task.name=file"),
        (["task.train=a", "task.test.own=b"], "task.train=a needs task.name=file; task.test.own=b needs task.name=file"),
        (["task.min_operations=5", "task.max_operations=4"], "task.min_operations=5 is above task.max_operations=4"),
        (["objective.kl_by={attempts: 0.1}"], "objective.kl_by={attempts: 0.1}: a weight is not below 0, and is of "),
        (["objective.kl_by={verdict/0: 0.1}"], "objective.kl_by={verdict/0: 0.1}: "),
        (["objective.kl_by={revision/1: -0.1}"], "objective.kl_by={revision/1: -0.1}: "),
        (
            ["objective.kl=0", "objective.kl_by={verdict: 0.1}", "objective.kl_estimate=k1"],
            "objective.kl_estimate=k1 has no gradient on average as a loss",
        ),
        (["prompts.question=Solve"], "prompts.question='Solve' does not contain {question}"),
        (
            [*GPUS, "rollout.colocate=true", "learner.workers=8", "rollout.workers=4"],
            "rollout.colocate=true: engine i shares the GPU of learner rank i, but rollout.workers=4 and learner.workers=8",
        ),
        (
            ["rollout.colocate=true", "learner.gpus=1"],
            "rollout.colocate=true: engine i shares the GPU of learner rank i, but rollout",
        ),
        (
            ["rollout.colocate=true", "learner.gpus=2", "rollout.gpus=2"],
            "rollout.colocate=true: learner and engine share one GPU, but rollout.gpus=2",
        ),
        (
            [*GPUS, "rollout.colocate=true", "rl.ahead=1"],
            "rollout.colocate=true: engines sleep while learners train, so rl.ahead=1 must be 0",
        ),
        (
            ["learner.transfer=ipc"],
            "learner.transfer=ipc opens the memory of the learner beside the engine: it needs rollout.colocate=true",
        ),
        (
            ["learner.transfer=broadcast", "learner.gpus=1"],
            "learner.transfer=broadcast needs both sides on GPUs, or none: learner.gpus=1, rollout.gpus=0",
        ),
        (
            ["learner.transfer=broadcast", "rollout.colocate=true", "rl.previous_share=0.5"],
            "learner.transfer=broadcast does not go with rl.previous_share=0.5, rollout.colocate=True",
        ),
        (["recipe=raft", "rl.refill=2"], "rl.refill=2: objective.loss=sft trains groups that agree, too"),
    ],
)
def test_settings_that_contradict_each_other_are_named_together(overrides, message):
    assert refused(*overrides).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "transfer"),
    [
        ([], "store"),
        (GPUS, "broadcast"),
        ([*GPUS, "rollout.colocate=true"], "ipc"),
        (["learner.gpus=1"], "store"),
        ([*GPUS, "rl.previous_share=0.5"], "store"),  # two versions are held at once
        ([*GPUS, "rollout.replay=a.jsonl"], "store"),
        (["rollout.colocate=true"], "store"),
        (["rollout.colocate=true", "learner.transfer=ipc"], "ipc"),
        (["learner.transfer=broadcast"], "broadcast"),
        ([*GPUS, "learner.transfer=store"], "store"),
    ],
)
def test_how_weights_are_sent_follows_from_where_both_sides_are(overrides, transfer):
    assert load_config(None, overrides).transfer == transfer


def test_the_7b_model_has_gpus_of_its_own_on_both_sides_and_the_8b_model_shares_them():
    assert load_config("qwen2.5-math-7b.yaml", []).transfer == "broadcast"
    assert load_config("llama-3-8b.yaml", []).transfer == "ipc"


def test_every_mistake_is_reported_at_once():
    message = refused("rl.prompts=ten", "sft.epoch=3")
    assert "rl.prompts='ten'" in message and "did you mean sft.epochs?" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.prompts", "'rl.prompts': overrides are written section.key=value"),
        ("rl.prompts=[1", "'rl.prompts=[1': the value is not YAML: "),
    ],
)
def test_an_override_that_cannot_be_read_is_quoted(override, message):
    assert refused(override).startswith(message)


def test_an_override_below_a_value_is_refused():
    assert refused("rl.steps=3", "rl.steps.x=1") == "'rl.steps.x=1': steps is not a section"


def test_files_that_are_missing_or_no_configuration_are_named(tmp_path):
    assert refused(path="none.yaml").startswith("--config none.yaml: no such file; shipped: ")
    (tmp_path / "list.yaml").write_text("- 1")
    assert refused(path=str(tmp_path / "list.yaml")).endswith("list.yaml: expected sections such as `model:`, found list")
    (tmp_path / "broken.yaml").write_text("rl: [")
    message = refused(path=str(tmp_path / "broken.yaml"))
    assert "broken.yaml: not YAML: " in message and "line 1, column 6" in message and "unicode string" not in message


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("rl:\n  steps: 3\nsft: {epochs: 1}\nrl:\n  steps: 4\n")
    assert refused(path=str(tmp_path / "c.yaml")).endswith("c.yaml: rl stands twice, in lines 1 and 4")
    (tmp_path / "c.yaml").write_text("rl:\n  steps: 3\n  group: 4\n  steps: 3\n")
    assert refused(path=str(tmp_path / "c.yaml")).endswith("c.yaml: rl.steps stands twice, in lines 2 and 4")


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "c.yaml").write_bytes("# für\n".encode("latin-1"))
    assert refused(path=str(tmp_path / "c.yaml")).endswith("c.yaml: not UTF-8")


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_config(str(tmp_path / "empty.yaml"), []) == Config()


def test_a_section_of_which_all_is_commented_out_is_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("rl:\n#  steps: 4\nsft: {epochs: 9}\n")
    assert load_config(str(tmp_path / "c.yaml"), []) == load_config(None, ["sft.epochs=9"])


def test_a_setting_in_the_place_of_a_section_and_the_other_way_round_is_told_where_it_belongs(tmp_path):
    (tmp_path / "c.yaml").write_text("rl.steps: 3\n")
    assert refused(path=str(tmp_path / "c.yaml")) == "rl.steps=3: in YAML it is written as steps: below rl:"
    (tmp_path / "c.yaml").write_text("model: embedded\n")
    assert refused(path=str(tmp_path / "c.yaml")) == "model='embedded': model is a section, with settings such as model.path"


def test_every_setting_has_a_description():
    silent = [
        f"{name}.{key}"
        for name, section in Config.model_fields.items()
        for key, setting in section.annotation.model_fields.items()
        if not setting.description
    ]
    assert silent == []
    assert {"objective.kl", "rl", "run.seed"} <= set(valid_keys())


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_shipped_configuration_loads_by_path_and_by_name(file):
    config = load_config(str(file), [])
    assert config == load_config(file.name, [])
    assert config.run.name == file.stem or config.run.name == Config().run.name


@pytest.mark.parametrize("overrides", [[], ["recipe=ppo", "objective.clip_low=0.1", "rl.steps=7"]])
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_runs_own_file_gives_its_settings_again(file, overrides, tmp_path):
    config = load_config(str(file), [*overrides, "name=mine"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(identity(config) | {"gone": {"x": 1}}))
    assert identity(load_run(tmp_path, [])) == identity(config)  # as runs were kept before they had a placement.yaml
    (tmp_path / "placement.yaml").write_text(yaml.safe_dump(placement(config) | {"gone": {"x": 1}}))
    again = load_run(tmp_path, [])
    assert (identity(again), placement(again)) == (identity(config), placement(config))
    assert load_run(tmp_path, ["rl.steps=8"]).rl.steps == 8


@pytest.mark.parametrize("text", ["rl: &a\n  x: *a\n", "rl: &a\n  <<: *a\n"])
def test_an_anchor_that_holds_itself_is_refused_with_its_file(text: str, tmp_path: Path):
    (tmp_path / "endless.yaml").write_text(text)
    assert refused(path=f"{tmp_path}/endless.yaml").startswith(f"{tmp_path}/endless.yaml: nested without end")
    (tmp_path / "shared.yaml").write_text("rl: &a {learning_rate: 1.0e-5}\nsft: *a\n")
    assert load_config(f"{tmp_path}/shared.yaml", []).sft.learning_rate == 1e-5


def test_a_run_may_be_kept_below_the_home_directory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(None, ["run.directory=~/runs", f"name={100 * 'a'}"])
    assert RunDirectory.locate(config) == Path("/home/me/runs", 100 * "a")


def configured(command: str, *overrides: str, **options: str | None) -> Config:
    return configuration(command, argparse.Namespace(**{"config": None, "overrides": list(overrides), **options}))


@pytest.mark.parametrize("command", ASKS_A_MODEL)
def test_a_runs_model_is_asked_under_the_settings_that_it_was_trained_with(command: str, tmp_path: Path):
    of_run = load_config(
        None, [f"run.directory={tmp_path}", "recipe=ppo-two-turn", "model.max_length=640", "prompts.revise=Again."]
    )
    RunDirectory(of_run).close()
    model = str(tmp_path / of_run.run.name / "checkpoints" / "rl")
    found = configured(command, model=model)
    assert (found.protocol.name, found.model, found.prompts) == ("two_turn", of_run.model, of_run.prompts)
    assert configured(command, "model.max_length=700", model=model).model.max_length == 700
    assert configured(command, model=model, config="llama-3-8b.yaml").prompts == load_config("llama-3-8b.yaml", []).prompts
    assert configured(command, model="embedded") == load_config("tiny.yaml", [])


@pytest.mark.parametrize("command", OF_A_RUN)
def test_a_runs_name_gives_the_actors_and_gpus_of_its_last_start(command: str, tmp_path: Path):
    name = ["name=gpu", f"run.directory={tmp_path}"]
    asked = load_config("qwen2.5-math-7b.yaml", [*name, "rollout.gpu_memory=0.5"])
    RunDirectory(asked).close()
    found = configured(command, *name)
    assert (found.rollout, found.learner, found.reward) == (asked.rollout, asked.learner, asked.reward)
    assert asked.rollout.gpus > 0 and found.rollout.gpu_memory == 0.5

    (tmp_path / "gpu" / "state.json").write_text("{}")  # from now on it is the same run or none
    again = asked.model_copy(update={"rollout": asked.rollout.model_copy(update={"timeout_s": 77.0})})
    RunDirectory(again).close()
    found = configured(command, *name, "rollout.tensor_parallel=2", "rollout.gpus=2", "rollout.workers=3")
    assert (found.rollout.timeout_s, found.rollout.workers, found.rollout.gpus) == (77.0, 3, 2)
    assert found.learner == asked.learner


def test_neither_fresh_nor_the_place_of_a_folder_are_kept_in_it(tmp_path: Path):
    directory = RunDirectory(load_config(None, ["fresh=true", f"run.directory={tmp_path / 'there'}"]))
    directory.close()
    moved = tmp_path / "here"
    directory.path.parent.rename(moved)
    found = configured("report", f"run.directory={moved}").run
    assert (found.fresh, found.directory) == (False, str(moved))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_configurations_change_what_they_set(file):
    config = load_config(str(file), []).model_dump()
    for section, settings in (yaml.safe_load(file.read_text()) or {}).items():
        for key, value in settings.items():
            assert config[section][key] == pytest.approx(value) if isinstance(value, float) else config[section][key] == value


def test_a_model_trained_without_verdicts_is_not_asked_for_any():
    assert load_config(None, []).own_protocol == "long_chain"
    assert load_config(None, ["stage1.recipe=raft"]).own_protocol == "intrinsic"
    assert load_config(None, ["stage1.recipe=raft_plus", "protocol.name=two_turn"]).own_protocol == "intrinsic"
    assert load_config(None, ["stage1.recipe=raft", "protocol.name=attempt"]).own_protocol == "attempt"


@pytest.mark.parametrize("command", ["report", "tune", "import", "weights", "evaluate"])
def test_a_command_that_needs_the_run_never_deletes_it(command: str, tmp_path: Path, capsys):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.yaml").write_text(yaml.safe_dump(identity(Config())))
    more = {"import": ["--from", str(tmp_path)], "weights": ["--to", str(tmp_path / "new")]}.get(command, [])
    assert main([command, *more, f"run.directory={tmp_path}", "fresh=true"]) == 2
    assert f"fresh=true would delete the run that {command} needs" in capsys.readouterr().err
    assert (tmp_path / "tiny" / "config.yaml").exists()
