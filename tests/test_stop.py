"""SIGTERM and Ctrl-C while Ray starts: the run ends as at any other time, and takes with it what had been started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from srl.commands import chat, grade, phases
from srl.config import load_config
from srl.driver.cluster import connect
from srl.main import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"])
def test_a_stop_while_ray_connects_waits_until_it_has(monkeypatch: pytest.MonkeyPatch, address: str, number: int):
    ended = []

    def init(**options) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as ray.init begins
        os.kill(os.getpid(), number)
        ended.append(options["address"])

    before = [signal.getsignal(known) for known in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(KeyboardInterrupt):
        connect(load_config("tiny.yaml", [f"run.ray_address={address}"]))
    assert ended == [address or "local"]
    assert [signal.getsignal(known) for known in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("command", ["grade", "chat --model embedded", "rl"])
def test_only_of_a_command_that_can_be_continued_it_is_said(command: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def stopped(options, config) -> None:
        raise KeyboardInterrupt

    for module in (grade, chat, phases):
        monkeypatch.setattr(module, "run", stopped)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert main(command.split()) == 130
    continues = "; the same command continues where it was" if command == "rl" else ""
    assert capsys.readouterr().err == f"\nsrl: stopped{continues}\n"


def test_a_run_that_is_stopped_while_ray_starts_leaves_no_process_and_nothing_half_written(tmp_path: Path):
    command = [sys.executable, "-m", "srl.main", "stage1", f"run.directory={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    driver, started = psutil.Process(process.pid), []
    deadline = time.monotonic() + 300
    while not started:  # Ray's first process
        assert time.monotonic() < deadline and process.poll() is None, "Ray has not begun to start"
        started = driver.children(recursive=True)
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, output + errors
    assert output.splitlines()[1:] == ["stopping; what is done is kept"]
    assert errors.split("\n") == ["", "srl: stopped; the same command continues where it was", ""]
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == [
        "tiny/config.yaml",
        "tiny/lock",
        "tiny/placement.yaml",
    ]
