"""Uploaded checkpoints of stage 2: whose they are, what `fresh` does to them, and the best policy that goes with them."""

import json
import subprocess
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

from srl.config import Config, ConfigError, load_config
from srl.driver.ledger import Ledger
from srl.driver.resume import checkpoints, prepare_upload, restore_best, save
from srl.driver.selection import Selection
from srl.learner import checkpoint
from srl.learner.checkpoint import Checkpoints, read_state
from srl.main import main


def save_step(store: Checkpoints, step: int) -> None:
    store.save(step, {"step": step}, lambda folder: (folder / "part-0.safetensors").write_text(str(step)))
    store.sending[1].result(60)


def steps_there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def configured(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, [f"learner.upload=file://{tmp_path}/far", f"run.directory={tmp_path}/runs", *overrides])


def test_a_run_continues_with_what_it_uploaded_itself_and_refuses_that_of_another_configuration(tmp_path):
    config, other = configured(tmp_path), configured(tmp_path, "objective.kl=0.5")
    save_step(checkpoints(config, tmp_path / "here"), 7)
    prepare_upload(config, tmp_path / "there")
    assert read_state(checkpoints(config, tmp_path / "there").latest()) == {"step": 7}
    with pytest.raises(ConfigError, match="far/tiny holds checkpoints of another configuration: choose another run.name"):
        prepare_upload(other, tmp_path / "third")
    with pytest.raises(ConfigError, match="another configuration"):
        checkpoints(other, tmp_path / "third").latest()


def test_settings_that_do_not_make_another_run_make_no_other_owner(tmp_path):
    save_step(checkpoints(configured(tmp_path), tmp_path / "here"), 7)
    prepare_upload(configured(tmp_path, "learner.workers=2", "run.log=json"), tmp_path / "there")


def test_fresh_deletes_what_an_earlier_run_of_that_name_uploaded(tmp_path):
    config = configured(tmp_path)
    save_step(checkpoints(config, tmp_path / "here"), 7)
    prepare_upload(configured(tmp_path, "objective.kl=0.5", "fresh=true"), tmp_path / "there")
    assert steps_there(tmp_path / "far" / "tiny") == [] and checkpoints(config, tmp_path / "there").latest() is None


def test_a_step_deletes_later_ones_of_a_past_that_was_given_up(tmp_path):
    url = f"file://{tmp_path}/far"
    ahead, behind = (Checkpoints(tmp_path / name, 2, url, "owner") for name in ("ahead", "behind"))
    for store, step in ((ahead, 8), (ahead, 9), (behind, 3)):
        save_step(store, step)
    assert steps_there(tmp_path / "far") == ["step-00000003"]


def test_the_best_policy_travels_with_a_checkpoint_and_replaces_none(tmp_path):
    config, best = configured(tmp_path), tmp_path / "checkpoints" / "rl"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_text("best")
    store = checkpoints(config, tmp_path / "here")
    update = SimpleNamespace(save_state=lambda folder: None, to_record=dict)
    save(store, 5, 1, update, Ledger(1, 0), Selection(0), None, best)
    store.sending[1].result(60)
    # The policy that is the best later is another folder.
    best.rename(tmp_path / "old")
    folder = checkpoints(config, tmp_path / "there").latest()
    restore_best(folder, best)
    assert (best / "model.safetensors").read_text() == "best" and json.loads((folder / "state.json").read_text())["step"] == 5
    (best / "model.safetensors").write_text("own")
    restore_best(folder, best)
    assert (best / "model.safetensors").read_text() == "own"


def test_without_an_upload_no_policy_is_kept_twice(tmp_path):
    best = tmp_path / "checkpoints" / "rl"
    best.mkdir(parents=True)
    store = checkpoints(load_config(None, []), tmp_path)
    save(store, 5, 1, SimpleNamespace(save_state=lambda folder: None, to_record=dict), Ledger(1, 0), Selection(0), None, best)
    assert not (store.latest() / "best").exists()


class NoCredentialsError(Exception):
    """Of no kind that Python knows, as those of cloud stores are."""


class Locked(MemoryFileSystem):
    protocol = "locked"

    def pipe_file(self, *arguments, **options) -> None:
        raise NoCredentialsError("Unable to locate credentials\nand more")


class Silent(MemoryFileSystem):
    protocol = "silent"

    def pipe_file(self, *arguments, **options) -> None:
        Event().wait(5)


STOPPED = """
import sys, threading
from pathlib import Path
from srl.learner import checkpoint
checkpoint.copy_out = lambda *arguments: threading.Event().wait()
store = checkpoint.Checkpoints(Path(sys.argv[1]), 2, "file:///nowhere", "me")
store.save(1, {}, lambda folder: (folder / "part-0.safetensors").write_text("1"))
raise SystemExit("stopping; what is done is kept")
"""


def test_a_store_that_hangs_does_not_keep_a_process_that_was_stopped(tmp_path):
    ended = subprocess.run([sys.executable, "-c", STOPPED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "what is done is kept" in ended.stderr, ended.stderr
    assert Checkpoints(tmp_path, 2).steps() == [1]


def test_a_run_that_ends_well_waits_for_its_last_upload_and_no_longer_than_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "UPLOAD_S", 0.2)
    monkeypatch.setattr(checkpoint, "copy_out", lambda *arguments: Event().wait(5))
    store = Checkpoints(tmp_path / "here", 2, "file:///nowhere", "owner")
    store.save(1, {}, lambda folder: None)
    with pytest.raises(ConfigError, match="learner.upload: step-00000001 was not copied to file:///nowhere in 0.2 s"):
        store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("locked://bucket/runs", "nothing can be written to {}/tiny: NoCredentialsError: Unable to locate credentials"),
        (
            "file:///dev/null/far",
            "nothing can be written to {}/tiny: NotADirectoryError: [Errno 20] Not a directory: '/dev/null/far",
        ),
        ("silent://bucket/runs", "{}/tiny has not taken a file in 0.2 s"),
    ],
)
def test_a_place_that_takes_no_file_is_refused_before_anything_starts(tmp_path, capfd, monkeypatch, url: str, message: str):
    for store in (Locked, Silent):
        register_implementation(store.protocol, store, clobber=True)
    monkeypatch.setattr(checkpoint, "ANSWER_S", 0.2)
    assert main([f"run.directory={tmp_path}/runs", f"learner.upload={url}"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(errors) == 1 and f"srl: learner.upload: {message.format(url)}" in errors[0]
    assert not (tmp_path / "runs").exists()


def test_the_trial_of_an_upload_leaves_nothing_behind(tmp_path):
    checkpoint.check_writable(f"file://{tmp_path}/far/tiny")
    assert list((tmp_path / "far" / "tiny").iterdir()) == []
