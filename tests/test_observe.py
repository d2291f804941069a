"""Status, log lines, sinks and metric names."""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
import yaml

from srl.config import Config, ConfigError, LearnerConfig, RlConfig, RunConfig, load_config, load_run
from srl.driver import run as driver
from srl.main import main
from srl.observe import progress, sinks
from srl.observe.metrics import Exporter, metric_name
from srl.observe.run_directory import RunDirectory, start_over
from srl.observe.sinks import Sink, check_sinks, open_sinks
from srl.observe.status import ago, format_status, last_record

STATE = {
    "written": 1000.0, "interval_s": 5, "host": "head", "pid": 7, "ended": False, "phase": "rl", "step": 12, "moved_s": 3.2,
    "actors": [
        {"role": "rollout", "rank": 1, "node": "10.0.0.2", "pid": 9, "starts": 2, "heard_s": 1.0, "resident": 2**30,
         "doing": "generate>step", "since_s": 30.0, "counts": {"sampled_tokens": 123456}, "levels": {"weight_version": 4}},
    ],
    "alarms": ["node 10.0.0.2 uses 95% of its 16.0 GiB memory"],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path):
    directory = RunDirectory(Config(run=RunConfig(directory=str(tmp_path))))
    yield directory
    directory.close()


def write_state(run: RunDirectory, **changes: Any) -> None:
    run.file("status.json").write_text(json.dumps({**STATE, **changes}))


def test_status_shows_phase_step_numbers_actors_and_alarms(run: RunDirectory):
    write_state(run)
    run.record("rl", 11, reward=0.5, final=61.25, unshown=3)
    text = format_status(run.path, now=1001.0)
    assert f"{run.path}: phase rl, step 12, moved 4 s ago (pid 7 on head)" in text
    assert "latest: rl step 11: reward 0.5, final 61.25" in text
    row = next(line for line in text.splitlines() if line.startswith("rollout 1"))
    assert " ".join(row.split()) == (
        "rollout 1 10.0.0.2 9 2 2 s ago 1.0 GiB generate>step for 31 s sampled_tokens=123,456 weight_version=4"
    )
    assert text.endswith("alarm: node 10.0.0.2 uses 95% of its 16.0 GiB memory")


def test_status_tells_an_ended_run_from_one_that_is_out_of_reach(run: RunDirectory):
    write_state(run, ended=True)
    assert "not running; ended 10 s ago in phase rl" in format_status(run.path, now=1010.0)
    write_state(run)
    assert "phase rl, step 12" in format_status(run.path, now=1080.0)  # within ten intervals and half a minute
    assert "out of reach; last heard 81 s ago in phase rl" in format_status(run.path, now=1081.0)


def test_ages_grow_after_the_last_write_and_of_an_ended_run_only_counts_are_shown(run: RunDirectory):
    actor = {**STATE["actors"][0], "heard_s": 0.2, "since_s": 30.0}
    write_state(run, moved_s=0.0, actors=[actor, {**actor, "rank": 2, "doing": "idle"}])
    text = format_status(run.path, now=1000.0 + 2760)
    first, second = (" ".join(line.split()) for line in text.splitlines() if line.startswith("rollout"))
    assert " 46 min ago 1.0 GiB generate>step for 46 min sampled_tokens" in first
    assert " 46 min ago 1.0 GiB idle sampled_tokens" in second and " 0 s ago" not in text
    assert "step 12, moved 45 s ago" in format_status(run.path, now=1045.0)

    write_state(run, ended=True, actors=[actor])
    text = format_status(run.path, now=1000.0 + 2760)
    row = next(line for line in text.splitlines() if line.startswith("rollout"))
    assert " ".join(row.split()) == "rollout 1 sampled_tokens=123,456 weight_version=4"
    assert text.count("ago") == 1 and "ended 46 min ago" in text


def test_a_run_continues_on_other_workers_but_not_under_other_sampling(run: RunDirectory):
    where = [f"run.directory={run.path.parent}", "rollout.workers=3", "rollout.threads=2", "reward.workers=2"]
    moved = [*where, "learner.workers=2", "learner.transfer=store"]
    RunDirectory(load_config(None, moved)).record("sft", 0, loss=1.0)
    with pytest.raises(ConfigError, match=r"rollout.top_p was 1.0, now 0.5"):
        RunDirectory(load_config(None, [*moved, "rollout.top_p=0.5"]))


def test_status_of_a_run_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["status", f"run.directory={tmp_path}", "name=none"]) == 2
    assert f"{tmp_path}/none: no such run directory" in capsys.readouterr().err


def test_the_last_record_is_found_behind_a_line_that_is_being_written(run: RunDirectory):
    for step in range(3000):  # more than what is read from the end
        run.record("sft", step, loss=1.0, text="x" * 20)
    with run.file("metrics.jsonl").open("a") as file:
        file.write('{"phase": "phase", "step": 0}\n{"phase": "rl", "st')
    assert last_record(run.file("metrics.jsonl"))["step"] == 2999


@pytest.mark.parametrize(("seconds", "text"), [(119, "119 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (3 * 86400, "3 d ago")])
def test_times_are_told_in_a_unit_that_reads(seconds: float, text: str):
    assert ago(seconds) == text


def test_json_lines_carry_run_phase_step_and_level(run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(progress, "FIELDS", [run.context])
    with run.phase("sft"):
        run.record("sft", 3, loss=1.0)
        progress.say('      epoch 1/2  "quoted"')
        progress.say("ALARM: something")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {**first, "time": ""} == {
        "time": "", "level": "info", "run": "tiny", "phase": "sft", "step": 3, "message": 'epoch 1/2  "quoted"',
    }  # fmt: skip
    assert second["level"] == "warning"


def test_every_line_of_a_run_is_json_from_its_first_on(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    def connect(config: Config) -> None:
        progress.say("waiting for nodes")
        raise ConfigError("none came")

    def check_start(config: Config, phases: list[str]) -> dict:
        progress.say("left out 2 rows")
        return {}

    monkeypatch.setattr(progress, "FIELDS", [])
    monkeypatch.setattr(driver, "check_start", check_start)
    monkeypatch.setattr(driver, "connect", connect)
    for log, message in (("json", lambda line: json.loads(line)["message"]), ("text", str)):
        with pytest.raises(ConfigError, match="none came"):
            driver.run_phases(load_config(None, [f"run.directory={tmp_path}", f"run.log={log}"]), "sft")
        lines = capsys.readouterr().out.splitlines()
        assert [message(line) for line in lines] == ["left out 2 rows", f"run tiny in {tmp_path}/tiny", "waiting for nodes"]


def test_progress_of_an_evaluation_counts_every_sample(monkeypatch, capsys: pytest.CaptureFixture[str]):
    def evaluate(session: Any, method: str, benchmark: str, tests: list, progress: Any) -> dict:
        for _ in range(8 * len(tests)):
            progress(1)
        return dict.fromkeys(("turn1", "final", "delta"), 0.0)

    monkeypatch.setattr(driver, "evaluate", evaluate)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    session = SimpleNamespace(config=load_config(None, ["evaluate.samples=8"]))
    driver.perform("evaluate-rl", session, {"test": {"b": [1, 2]}})
    assert "16/16 trajectories, 0 s left" in capsys.readouterr().out


def test_what_was_measured_of_a_model_before_it_had_learnt_all_is_measured_again(run: RunDirectory, monkeypatch):
    """Stage 2 is stopped, its best policy so far evaluated, and then it goes on."""
    performed: list[str] = []
    monkeypatch.setattr(driver, "perform", lambda phase, *_: performed.append(phase))
    run.file("checkpoints/rl").mkdir()
    driver.perform_missing(("evaluate",), run, None, {})
    assert performed == ["evaluate-base", "evaluate-rl"]
    driver.perform_missing(("run",), run, None, {})
    assert performed[2:] == ["sample", "assemble", "sft", "evaluate-ift", "rl", "evaluate-rl"]
    driver.perform_missing(("run",), run, None, {})
    assert len(performed) == 8 and list(run.done()) == ["evaluate-base", *performed[2:]]


class FakeSink(ModuleType):
    """Records what wandb and mlflow would be called with."""

    def __init__(self, name: str):
        super().__init__(name)
        self.calls: list[tuple] = []
        self.__spec__ = SimpleNamespace(name=name)

    def __getattr__(self, name: str):
        def call(*positional, **named):
            self.calls.append((name, positional, named))
            return SimpleNamespace(id="id-2", info=SimpleNamespace(run_id="id-1"), log=self.log)

        return call


def test_records_reach_the_sinks_with_phase_and_step(run: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    wandb, mlflow = FakeSink("wandb"), FakeSink("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for _ in range(2):  # the second time the run is continued
        with open_sinks(["wandb", "mlflow"], run, {"seed": 0}):
            run.record("rl", 4, kl=0.25, name="text is no number")
        run.listeners.clear()
    assert [call[0] for call in wandb.calls] == ["init", "log", "finish"] * 2
    started = [call[2] for call in wandb.calls if call[0] == "init"]
    assert [(call["name"], call["id"], call["resume"]) for call in started] == [
        ("tiny", None, "allow"),
        ("tiny", "id-2", "allow"),
    ]
    assert wandb.calls[1][1] == ({"rl/step": 4, "rl/kl": 0.25},)
    assert ("log_metrics", ({"rl/kl": 0.25},), {"step": 4, "run_id": "id-1"}) in mlflow.calls
    assert [call[2]["run_id"] for call in mlflow.calls if call[0] == "start_run"] == [None, "id-1"]


class Unreachable(FakeSink):
    """A server that answers while the run starts and not afterwards."""

    def log_metrics(self, *positional: Any, **named: Any) -> None:
        raise RuntimeError("API request failed: Max retries exceeded")

    end_run = log_metrics


def test_a_sink_that_does_not_answer_is_said_once_and_costs_no_record(run: RunDirectory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", Unreachable("mlflow"))
    with open_sinks(["mlflow"], run, {}):
        for step in range(3):
            run.record("rl", step, loss=1.0)
    assert len(run.file("metrics.jsonl").read_text().splitlines()) == 3
    assert capsys.readouterr().out.splitlines() == [
        f"WARNING: run.sinks: mlflow {what}; metrics.jsonl has all measurements"
        for what in (
            "took no record (API request failed: Max retries exceeded); it is tried again every 300 s",
            "was not closed (API request failed: Max retries exceeded)",
            "lacks 3 records",
        )
    ]


def test_a_sink_that_failed_is_tried_again_after_its_rest():
    now, fails, taken = [1000.0], [True], []

    def send(phase: str, step: int, values: dict) -> None:
        taken.append(step)
        if fails[0]:
            raise ConnectionError("refused")

    sink = Sink("wandb", send, lambda: now[0])
    for step, (moment, failing) in enumerate(
        [(1000, True), (1299, True), (1300, True), (1599, False), (1600, False), (1601, False)]
    ):
        now[0], fails[0] = moment, failing
        sink.pass_on("rl", step, {})
    assert taken == [0, 2, 4, 5] and sink.lacks == 4


def test_nobody_waits_for_a_sink_that_takes_long_and_what_waited_for_it_arrives(run: RunDirectory, monkeypatch, capsys):
    answers, taken = threading.Event(), []

    def send(phase: str, step: int, values: dict) -> None:
        assert answers.wait(60)
        taken.append(step)

    monkeypatch.setattr(sinks, "MOST_WAITING", 3)
    sink = Sink("mlflow", send)
    run.listeners.append(sink.take)
    run.record("rl", 0, loss=1.0)
    while sink.waiting.qsize():
        time.sleep(0.01)
    for step in range(1, 6):
        run.record("rl", step, loss=1.0)
    assert taken == []
    answers.set()
    sink.close(lambda: None)
    assert taken == [0, 1, 2, 3] and "mlflow lacks 2 records" in capsys.readouterr().out


def test_a_sink_that_never_answers_is_left_behind_at_the_end_with_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(sinks, "CLOSE_S", 0.1)
    sink = Sink("mlflow", lambda *record: time.sleep(60))
    for step in range(4):
        sink.take("rl", step, {})
    sink.close(lambda: None)
    assert "mlflow lacks 4 records" in capsys.readouterr().out


def test_a_sink_that_cannot_be_opened_is_named(run: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    away = Unreachable("mlflow")
    away.start_run = away.log_metrics
    monkeypatch.setitem(sys.modules, "mlflow", away)
    with (
        pytest.raises(ConfigError, match="run.sinks: mlflow cannot be opened: API request failed"),
        open_sinks(["mlflow"], run, {}),
    ):
        pass


def test_a_sink_without_its_package_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"run.sinks: wandb is not installed \(pip install wandb\)"):
        check_sinks(["wandb"])


def test_metric_names_are_what_prometheus_allows():
    assert metric_name("rl-validation_c2i") == "srl_rl_validation_c2i"


def test_counters_send_increases_only_and_levels_no_nan_and_are_repeated_as_they_last_were(monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple] = []

    def metric(name: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(
            inc=lambda value, tags: sent.append((name, value, tags["kind"])),
            set=lambda value, tags: sent.append((name, value, tags["rank"])),
        )

    monkeypatch.setattr("srl.observe.metrics.Counter", metric)
    monkeypatch.setattr("srl.observe.metrics.Gauge", metric)
    exporter = Exporter("tiny", "rollout", 3)
    for total in (5, 5, 8):
        exporter.count("rollout_turns", total)
    exporter.count("reward_grades/correct", 2)
    exporter.level("rl_kl", 0.5)
    exporter.level("rl_kl", float("nan"))
    assert sent == [
        ("srl_rollout_turns", 5, ""), ("srl_rollout_turns", 3, ""), ("srl_reward_grades", 2, "correct"), ("srl_rl_kl", 0.5, "3"),
    ]  # fmt: skip
    exporter.record("rl", 7, {"loss": 0.25, "reward": 1})
    exporter.record("rl", 8, {"loss": float("inf"), "reward": 2})
    sent.clear()
    exporter.repeat_levels()
    assert sent == [("srl_rl_step", 8, "3"), ("srl_rl_reward", 2, "3")], "a number that is none has no last value"


@pytest.mark.parametrize("name", ["../other/config.yaml", "/etc/passwd", "stage1/../../x"])
def test_no_file_outside_the_run_directory_can_be_named(run: RunDirectory, name: str):
    with pytest.raises(ValueError, match="leads out of the run directory"):
        run.file(name)


def test_a_link_that_leads_out_of_the_run_directory_is_refused(run: RunDirectory, tmp_path: Path):
    (run.path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        run.file("link/x")


HOLD = """
import sys, time
from srl.config import Config, RunConfig
from srl.observe.run_directory import RunDirectory
with RunDirectory(Config(run=RunConfig(directory=sys.argv[1]))).alone():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_volume_without_locks_is_named_with_its_setting(tmp_path, monkeypatch, capsys):
    def no_locks(*lock: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("srl.observe.run_directory.fcntl.flock", no_locks)
    (tmp_path / "set.jsonl").touch()
    assert main(["import", "--from", str(tmp_path / "set.jsonl"), f"run.directory={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"srl: run.directory: {tmp_path / 'tiny' / 'lock'} cannot be locked: No locks available\n"


def test_starting_over_deletes_nothing_but_a_run(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match=r"run\.fresh: .*tiny holds no run"):
        start_over(Config(run=RunConfig(directory=str(tmp_path), fresh=True)))
    assert (tmp_path / "tiny" / "thesis.tex").exists()


def test_a_fresh_run_deletes_once_at_its_beginning_and_nothing_that_it_makes(tmp_path):
    config = Config(run=RunConfig(directory=str(tmp_path), fresh=True))
    for reward in (1.0, 0.5):
        start_over(config)
        assert not (tmp_path / "tiny").exists()
        begun = RunDirectory(config)
        begun.record("rl", 0, reward=reward)
        begun.close()
        RunDirectory(config).close()
        assert json.loads((tmp_path / "tiny" / "metrics.jsonl").read_text())["reward"] == reward


def test_a_run_made_before_a_setting_existed_continues_with_its_default_and_with_nothing_else(tmp_path):
    config = Config(run=RunConfig(directory=str(tmp_path)))
    run = RunDirectory(config)
    run.record("sft", 0, loss=1.0)
    file = run.file("config.yaml")
    before = yaml.safe_load(file.read_text())
    del before["rl"]["patience"], before["critic"]
    file.write_text(yaml.safe_dump(before))
    other = config.model_copy(update={"rl": RlConfig(patience=3)})
    with pytest.raises(ConfigError, match=r"of another configuration \(rl.patience was 0, now 3\)"):
        RunDirectory(other)
    assert RunDirectory(config).path == file.parent


def test_settings_may_change_until_a_run_has_come_to_anything(tmp_path):
    config = Config(run=RunConfig(directory=str(tmp_path)))
    other = config.model_copy(update={"rl": RlConfig(patience=3)})
    assert RunDirectory(config).path == RunDirectory(other).path
    kept = yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text())
    assert kept["rl"]["patience"] == 3
    (tmp_path / "tiny" / "stage1" / "samples" / "block-00000.parquet").write_text("half an hour")
    with pytest.raises(ConfigError, match=r"rl.patience was 3, now 0"):
        RunDirectory(config)


WAITS_AND_SIZES = ["run.nodes_wait_s=3000", "protocol.judge_timeout_s=9", "rollout.max_held=64", "evaluate.block=8"]


@pytest.mark.parametrize("setting", [*WAITS_AND_SIZES, "rollout.record=all.jsonl", "sft.checkpoint_every=50"])
def test_a_run_goes_on_under_other_waits_and_sizes_that_change_no_sample(setting: str, tmp_path: Path):
    directory = f"run.directory={tmp_path}"
    RunDirectory(load_config(None, [directory])).record("sft", 0, loss=1.0)
    changed = load_config(None, [directory, setting])
    assert RunDirectory(changed).path == tmp_path / "tiny"
    assert load_run(tmp_path / "tiny", [directory]) == changed
    with pytest.raises(ConfigError, match=r"protocol.judge_url was '', now 'http://other/v1'"):
        RunDirectory(load_config(None, [directory, setting, "protocol.judge_url=http://other/v1"]))


def test_settings_may_not_change_under_a_process_that_has_just_begun(run: RunDirectory):
    other = Config(run=RunConfig(directory=str(run.path.parent)), rl=RlConfig(patience=3))
    with run.alone(), pytest.raises(ConfigError, match="another process works in this run directory"):
        RunDirectory(other)
    assert yaml.safe_load(run.file("config.yaml").read_text())["rl"]["patience"] == 0


def test_status_says_when_a_run_has_done_what_was_asked(run: RunDirectory):
    with run.phase("rl"):
        pass
    write_state(run, ended=True)
    assert "tiny: finished what was asked for 10 s ago (pid 7 on head)" in format_status(run.path, now=1010.0)
    write_state(run, ended=True, phase="evaluate-rl")
    assert "not running; ended 10 s ago in phase evaluate-rl" in format_status(run.path, now=1010.0)


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:9", "no Ray cluster answers there"), ("nonsense", "not a cluster's address"), ("auto", "cannot be written")],
)
def test_a_timeline_that_cannot_be_had_is_one_line(run: RunDirectory, address: str, said: str, monkeypatch, capsys):
    for name, answer in {"init": None, "timeline": [], "shutdown": None}.items():
        monkeypatch.setattr(ray, name, lambda *_, answer=answer, **__: answer)
    file = run.path / "none" / "timeline.json"
    assert main(["status", f"run.directory={run.path.parent}", f"run.ray_address={address}", "--timeline", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("srl: ") and said in line and (str(file) if address == "auto" else address) in line


@pytest.mark.parametrize("name", ["status.json", "state.json"])
def test_a_broken_file_of_a_run_is_named(run: RunDirectory, name: str, capsys: pytest.CaptureFixture[str]):
    run.file(name).write_text("{")
    assert main(["status", f"run.directory={run.path.parent}"]) == 2
    assert f"{name}: not JSON: " in capsys.readouterr().err


def test_one_process_at_a_time_works_in_a_run_directory(run: RunDirectory):
    settings = RunConfig(directory=str(run.path.parent))
    other = subprocess.Popen([sys.executable, "-c", HOLD, settings.directory], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    refused = pytest.raises(ConfigError, match="tiny: another process works in this run directory")
    with refused, RunDirectory(Config(run=settings, learner=LearnerConfig(workers=7))).alone():
        pass
    assert yaml.safe_load(run.file("placement.yaml").read_text())["learner"]["workers"] == 1
    with refused:  # nor may it be deleted
        start_over(Config(run=settings.model_copy(update={"fresh": True})))
    other.kill()
    other.wait(10)
    with run.alone():
        assert run.file("config.yaml").exists()
