"""Each mistake ends at once with one clear line that names the thing, exit status 2, and nothing written."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
import yaml

from benchmarks import grading, seeds
from srl.commands import phases
from srl.config import load_config
from srl.driver.check import check_engines, starts_engines
from srl.main import main
from srl.observe.run_directory import RunDirectory
from srl.protocols.chat import model_folder

PROBLEM = {"problem": "Start at 47: (1) +38 = ?", "answer": "85"}


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def broken_model(folder: Path, change: Callable[[Path], object]) -> Path:
    copy = folder / "model"
    shutil.copytree(model_folder("embedded"), copy)
    change(copy)
    return copy


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def refused(folder: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error."""
    runs = folder / "runs"
    assert main([*arguments, f"run.directory={runs}"]) == 2
    assert not runs.exists(), "something was written"
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("srl: ")]
    assert len(errors) == 1
    return errors[0]


def file_task(train: Path, test: Path) -> list[str]:
    return ["task.name=file", f"task.train={train}", f"task.test.own={test}", "evaluate.validation_problems=1"]


def test_a_missing_model_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "model.path=/no/such/model" in refused(tmp_path, capfd, "model.path=/no/such/model")


def test_a_tokenizer_without_chat_template(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = broken_model(tmp_path, without_template)
    message = refused(tmp_path, capfd, f"model.path={folder}")
    assert str(folder) in message and "chat template" in message


def test_broken_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    message = refused(tmp_path, capfd, f"model.path={broken_model(tmp_path, cut_weights)}")
    assert "model.safetensors is broken" in message


def test_a_model_folder_without_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = broken_model(tmp_path, lambda model: (model / "model.safetensors").unlink())
    assert "no weights" in refused(tmp_path, capfd, f"model.path={folder}")


def test_an_empty_prompt_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    good, empty = lines(tmp_path / "good.jsonl", [PROBLEM]), lines(tmp_path / "empty.jsonl", [])
    assert str(empty) in refused(tmp_path, capfd, *file_task(empty, good))


@pytest.mark.parametrize(
    "bad", [{"problem": "Start at 47: (1) +38 = ?"}, {**PROBLEM, "answer": ""}, {**PROBLEM, "answer": r"\frac{1}{"}]
)
def test_a_problem_without_a_usable_gold_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str], bad: dict):
    other = {"problem": "Start at 11: (1) +40 = ?", "answer": "51"}
    train, test = lines(tmp_path / "train.jsonl", [other, bad]), lines(tmp_path / "test.jsonl", [PROBLEM])
    message = refused(tmp_path, capfd, *file_task(train, test))
    assert str(train) in message and "2" in message


def test_a_problem_that_the_tokenizer_cannot_write(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    foreign = {"problem": "Wie viel?", "answer": "1"}
    train, test = lines(tmp_path / "train.jsonl", [PROBLEM]), lines(tmp_path / "test.jsonl", [foreign])
    message = refused(tmp_path, capfd, *file_task(train, train)[:2], f"task.test.own={test}", f"task.validation={train}")
    assert "Wie viel?" in message and "the tokenizer has no tokens" in message


def test_wording_that_the_tokenizer_cannot_write(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "prompts.verify: the tokenizer has no tokens for all of 'Überprüfe.'" in refused(
        tmp_path, capfd, "prompts.verify=Überprüfe."
    )


def test_too_little_memory_for_the_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "rollout.kv_cache_gib=100000" in refused(tmp_path, capfd, "rollout.kv_cache_gib=100000")
    assert "rollout.kv_cache_gib=100000" in refused(tmp_path, capfd, "rollout.kv_cache_gib=100000", "run.ray_address=local")


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    "command", ["run", "stage1", "rl rl.start=base", "tune", "run run.ray_address=local", "stage1 rollout.replay={}/none.jsonl"]
)
def test_a_machine_without_what_vllm_needs_on_its_cpus(tmp_path: Path, capfd, without_compiler: None, command: str):
    (tmp_path / "none.jsonl").touch()
    message = refused(tmp_path, capfd, *command.format(tmp_path).split())
    assert message.endswith("needs a C++ compiler (Debian's package g++): no no-such-compiler")


def test_a_model_that_cannot_be_evaluated_without_what_vllm_needs(tmp_path: Path, capfd, without_compiler: None):
    assert main(["evaluate", "--model", "base", f"run.directory={tmp_path}"]) == 2
    assert capfd.readouterr().err.endswith("no no-such-compiler\n") and not ray.is_initialized()


@pytest.mark.parametrize("setting", ["rollout.gpus=1", "run.ray_address=10.0.0.1:6379", "run.ray_address=auto"])
def test_engines_that_run_elsewhere_need_nothing_of_this_machine(without_compiler: None, setting: str):
    check_engines(load_config("tiny.yaml", [setting]))


def test_phases_that_sample_with_vllm():
    plain, replayed = load_config("tiny.yaml", []), load_config("tiny.yaml", ["rollout.replay=/recorded.jsonl"])
    taken = load_config("tiny.yaml", ["stage1.samples=/samples"])
    assert all(starts_engines(plain, [phase]) for phase in ("evaluate-base", "sample", "rl"))
    assert not starts_engines(plain, ["assemble", "sft", "orm"])
    assert not starts_engines(replayed, ["evaluate-base", "rl"]) and starts_engines(replayed, ["sample"])
    assert not starts_engines(taken, ["sample", "assemble"]) and starts_engines(taken, ["sample", "evaluate-ift"])


def test_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "1 MiB free" in refused(tmp_path, capfd)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(28, "No space left on device", "/runs/tiny/metrics.jsonl"), "/runs/tiny/metrics.jsonl"),
        (RuntimeError("ray::Learner.save_state()\nI/O error: No space left on device (os error 28)"), "run.directory, "),
        (OSError(122, "Disk quota exceeded"), "run.directory, "),
    ],
)
def test_a_disk_that_gets_full_is_told_in_one_line_whoever_wrote(error, where: str, capfd, monkeypatch: pytest.MonkeyPatch):
    def fails(options, config) -> None:
        raise error

    monkeypatch.setattr(phases, "run", fails)
    assert main(["rl"]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"srl: no space is left on the disk of {where}")
    assert said.endswith(": make room; then the same command continues where it was\n")


def test_an_error_that_is_none_of_the_disk_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fails(options, config) -> None:
        raise OSError(13, "Permission denied", "/x")

    monkeypatch.setattr(phases, "run", fails)
    with pytest.raises(PermissionError):
        main(["rl"])


def test_a_taken_port(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"run.dashboard_port={port}" in refused(tmp_path, capfd, f"run.dashboard_port={port}")


WANTING = [
    (["sft"], "tiny/stage1/demonstrations.parquet: no demonstrations; run stage1 first"),
    (["rl"], "tiny/checkpoints/ift: no model weights (*.safetensors); run sft first"),
    (["orm"], "tiny/stage1/samples: no samples; run stage1 first"),
    (["rl", "fresh=true"], "fresh=true would delete what rl starts from"),
    (["rl.start=/nope"], "rl.start=/nope: no such folder"),
    (["rl.start={}"], "rl.start={}: no model in this folder"),
    (["stage1.samples=/nope"], "stage1.samples=/nope: /nope: no samples"),
    (["stage1.samples={}/runs/tiny/stage1/samples", "fresh=true"], "samples: fresh=true would delete it"),
    (["stage1.teacher=/nope"], "stage1.teacher=/nope: no such folder"),
    (["rollout.replay=/nope"], "rollout.replay=/nope: no such file"),
    (["protocol.name=judged", "protocol.judge=served"], "protocol.judge=served asks the model behind protocol.judge_url"),
    (["learner.upload=foo://x"], "learner.upload=foo://x: Protocol not known: foo"),
    (["rl.filters=[nope]"], "rl.filters=nope: there is none of that name"),
    (["task.name=file", "task.train=/nope.jsonl", "task.test.own=/nope.jsonl"], "/nope.jsonl: no such file"),
    (["--config", "{}/twice.yaml"], "twice.yaml: rl.steps stands twice, in lines 1 and 1"),
]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["start", "dry-run"])
@pytest.mark.parametrize(("arguments", "message"), WANTING)
def test_what_a_phase_would_miss_is_said_before_anything_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str, more: list[str]
):
    (tmp_path / "twice.yaml").write_text("rl: {steps: 1, steps: 2}")
    command = [argument.format(tmp_path) for argument in arguments]
    assert message.format(tmp_path) in refused(tmp_path, capfd, *command, *more)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "not a cluster's address"),
        ("head", "not a cluster's address"),
        ("127.0.0.1:1", "no Ray cluster"),
    ],
)
def test_an_address_without_a_cluster(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch, address: str, message: str):
    assert f"run.ray_address={address}: {message}" in refused(tmp_path, capfd, f"run.ray_address={address}")
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS={address}: {message}" in refused(tmp_path, capfd)


def test_a_port_at_which_a_web_server_answers_such_as_the_dashboards(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        said = f"run.ray_address={address}: a web server answers there, such as the dashboard's; the head's own port is 6379"
        assert said in refused(tmp_path, capfd, f"run.ray_address={address}")
        server.shutdown()


def test_a_folder_that_cannot_be_made(capfd: pytest.CaptureFixture[str]):
    assert main(["run.directory=/dev/null"]) == 2
    assert "srl: run.directory: /dev/null/tiny cannot be made: Not a directory" in capfd.readouterr().err


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/none"])
@pytest.mark.parametrize("command", ["run", "evaluate --model base"])
def test_a_dry_run_tells_that_its_folder_cannot_be_made_and_makes_none_that_can(tmp_path: Path, capfd, command: str, folder: str):
    words = [*command.split(), "--dry-run", "name=mine"]
    assert main([*words, f"run.directory={folder}"]) == 2
    assert f"srl: run.directory: {folder}/mine cannot be made: " in capfd.readouterr().err
    assert main([*words, f"run.directory={tmp_path}/deep"]) == 0
    assert not list(tmp_path.iterdir())


def test_problems_that_are_not_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = tmp_path / "latin.jsonl"
    file.write_bytes('{"problem": "für", "answer": "1"}\n'.encode("latin-1"))
    assert f"{file}: not UTF-8" in refused(tmp_path, capfd, *file_task(file, file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("size --full 0 --alone 1 --learner 1 --tokens 1", "--full: 0 is not a number above 0"),
        ("size --full 1 --alone 1 --learner 1 --tokens nan", "--tokens: nan is not a number above 0"),
        ("tune --temperature -1", "--temperature: -1 is not a number of at least 0"),
        ("tune --problems 0", "--problems: 0 is not a whole number of at least 1"),
        ("plan --gpus 0", "--gpus: 0 is not a whole number of at least 1"),
        ("plan --gpus=-1", "--gpus: -1 is not a whole number of at least 1"),
        ("plan --tokens 0", "--tokens: 0 is not a number above 0"),
        ("evaluate --model base --samples 0", "--samples: 0 is not a whole number of at least 1"),
        ("evaluate --model base --temperature=-1", "--temperature: -1 is not a number of at least 0"),
        ("chat --model embedded --temperature x", "--temperature: x is not a number of at least 0"),
        ("serve --model embedded --port 0", "--port: 0 is not a whole number of at least 1"),
        ("weights --to x --step -1", "--step: -1 is not a whole number of at least 0"),
    ],
)
def test_a_number_that_is_out_of_bounds(capfd: pytest.CaptureFixture[str], arguments: str, message: str):
    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    assert left.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"error: argument {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("chat --model /nope", "--model=/nope: no such folder"),
        ("chat --model embedded --protocol gold", "--protocol gold: choose one of"),
        ("serve --model {}/empty", "--model={}/empty: no model in this folder"),
        ("serve --model embedded --port 99999", "--port 99999: "),
        ("serve --model embedded --host no.such.host.invalid", "--host no.such.host.invalid"),
        ("evaluate --dry-run --model rl", "--model rl: {}/runs/tiny has no such checkpoint yet"),
        ("evaluate --model {}/empty", "--model={}/empty: no model in this folder"),
        (
            "evaluate --dry-run --model base --protocol nope",
            "--protocol=nope: there is none of that name; there are long_chain, ",
        ),
        ("run --dry-run protocol.name=nope", "protocol.name=nope: there is none of that name; there are long_chain, "),
        ("run --dry-run protocol.name=verdict", "protocol.name=verdict: there is none of that name; there are long_chain, "),
        ("run --dry-run protocol.name=nope:own", "protocol.name=nope:own: No module named 'nope'"),
        ("evaluate --dry-run --model base --benchmark {}/nope.jsonl", "{}/nope.jsonl: no such file"),
        ("pretrain --to /dev/null/x", "--to: /dev/null/x cannot be made: Not a directory"),
    ],
)
def test_what_a_command_cannot_use(tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str):
    (tmp_path / "empty").mkdir()
    assert message.format(tmp_path) in refused(tmp_path, capfd, *arguments.format(tmp_path).split())


def test_a_port_that_is_taken_is_refused_before_vllm_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port {port}: Address already in use" in refused(
            tmp_path, capfd, "serve", "--model", "embedded", f"--port={port}"
        )


def made_run(folder: Path, *settings: str) -> Path:
    """A run that has been fine-tuned."""
    run = RunDirectory(load_config("tiny.yaml", [f"run.directory={folder}", "name=mine", *settings]))
    with run.phase("sft"):
        pass
    run.file("stage1/demonstrations.parquet").touch()
    run.close()
    return run.path


def test_demonstrations_are_not_replaced_under_a_model_that_was_trained_on_others(tmp_path: Path, capfd):
    path = made_run(tmp_path)
    assert main(["import", "--from", str(tmp_path), f"run.directory={tmp_path}", "name=mine"]) == 2
    assert f"{path}: sft has begun here on other demonstrations" in capfd.readouterr().err


def test_an_export_into_a_folder_that_cannot_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    made_run(tmp_path)
    assert main(["export", "--to", "/dev/null/x", f"run.directory={tmp_path}", "name=mine"]) == 2
    assert "--to: /dev/null/x cannot be made: Not a directory" in capfd.readouterr().err


def test_a_run_is_found_by_its_name_alone_and_contradictions_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = made_run(tmp_path, "recipe=ppo", "rl.steps=7", "sft.epochs=9")
    name = [f"run.directory={tmp_path}", "name=mine"]
    assert main(["report", *name]) == 0 and (path / "report.html").exists()
    assert main(["evaluate", "--dry-run", *name]) == 0
    assert "steps: 7" in capfd.readouterr().out
    assert main(["report", *name, "rl.steps=8"]) == 2
    assert "(rl.steps was 7, now 8)" in capfd.readouterr().err


def test_a_run_whose_folder_was_renamed_is_reported_evaluated_and_continued_under_its_new_name(tmp_path: Path, capfd):
    where, settings = [f"run.directory={tmp_path}"], ["rl.steps=7"]
    path = made_run(tmp_path, *settings)
    (path / "state.json").write_text('{"phases": {"evaluate-base": 1.0}}')  # the rest is still to be done
    path.rename(tmp_path / "other")
    assert main(["report", *where, "name=other"]) == 0 and (tmp_path / "other" / "report.html").exists()
    assert main(["evaluate", "--dry-run", *where, "name=other"]) == 0
    assert main(["run", "--dry-run", *where, "name=other", *settings]) == 0
    (tmp_path / "other").rename(tmp_path / "tiny")  # as a run is called when nothing is said
    assert main(["report", *where]) == 0 and (tmp_path / "tiny" / "report.html").exists()
    assert capfd.readouterr().err == "" and [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text())["run"]["name"] == "tiny"


@pytest.mark.parametrize("command", ["report", "evaluate --dry-run", "orm --dry-run", "run --dry-run", "compare {0} {0}"])
@pytest.mark.parametrize(
    ("text", "said"),
    [("", "empty or cut off"), ("run:\n  name: mine\n", "empty or cut off"), ("- a\n", "expected sections"),
     ("run: 3\n", "run is a section"), ("rl: [", "not YAML")],
)  # fmt: skip
def test_a_damaged_config_yaml_is_named_and_nothing_advises_to_delete_the_run(
    command: str, text: str, said: str, tmp_path: Path, capfd
):
    path = made_run(tmp_path)
    (path / "results.json").write_text('{"rows": []}')
    (path / "config.yaml").write_text(text)
    page = [f"--output={tmp_path}/page.html"] * command.startswith("compare")
    assert main([*command.format(path).split(), *page, f"run.directory={tmp_path}", "name=mine"]) == 2
    error = capfd.readouterr().err
    assert f"srl: {path}/config.yaml: {said}" in error and "fresh" not in error


def test_only_commands_that_may_start_over_are_offered_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    made_run(tmp_path, "rl.steps=7")
    other = [f"run.directory={tmp_path}", "name=mine", "rl.steps=8"]
    for command, over in {"run": True, "stage1": True, "sft": True, "rl": True, "orm": False, "evaluate": False}.items():
        assert main([command, "--dry-run", *other]) == 2
        advice = capfd.readouterr().err.rpartition("(rl.steps was 7, now 8): ")[2]
        assert advice == f"choose another run.name{', or fresh=true to start over' * over}\n"


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (seeds, ["/nope"], "/nope: no run in it that has done everything"),
        (seeds, ["a.png"], "name at least one run directory"),
        (grading, ["math=/nope.jsonl"], "/nope.jsonl: no such file"),
        (grading, ["math500", "--cases", "/nope.jsonl"], "/nope.jsonl: no such file"),
    ],
)
def test_a_benchmark_without_its_files(module, arguments: list[str], message: str, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as left:
        module.main(*[arguments] * (module is seeds))
    assert left.value.code == 2 and message in capfd.readouterr().err


def test_a_misspelt_setting(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert "did you mean rl.steps?" in refused(tmp_path, capfd, "rl.stps=3")


def test_an_unknown_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["frobnicate"]) == 2
    assert "no command 'frobnicate'" in capfd.readouterr().err


def test_a_reader_that_leaves_ends_a_command_without_a_traceback(tmp_path: Path):
    command = [sys.executable, "-m", "srl.main", "--dry-run", f"run.directory={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(120) == 141
    assert b"Traceback" not in said and b"BrokenPipe" not in said
