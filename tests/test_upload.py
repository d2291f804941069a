"""Uploaded checkpoints of stage 2: whose they are, what `fresh` does to them, and the best policy that goes with them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic
from types import SimpleNamespace

import pytest
from fsspec import register_implementation
from fsspec.core import url_to_fs
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


def test_after_fresh_a_first_step_is_all_that_is_there_of_a_past_that_was_given_up(tmp_path):
    config = configured(tmp_path, "fresh=true")
    for name, steps in (("ahead", (8, 9)), ("behind", (3,))):
        prepare_upload(config, tmp_path / name)
        store = checkpoints(config, tmp_path / name)
        assert store.latest() is None
        for step in steps:
            save_step(store, step)
    assert steps_there(tmp_path / "far" / "tiny") == ["step-00000003"]


def two_machines(folder: Path) -> list[Checkpoints]:
    """The first has uploaded up to step 5; the second has gone on from there to step 20."""
    first, second = (Checkpoints(folder / name, 2, f"file://{folder}/far", "owner") for name in ("first", "second"))
    for step in (4, 5):
        save_step(first, step)
    assert read_state(second.latest()) == {"step": 5}
    for step in (19, 20):
        save_step(second, step)
    return [first, second]


def test_a_machine_with_earlier_checkpoints_goes_on_with_the_latest_that_another_has_uploaded(tmp_path):
    store, _ = two_machines(tmp_path)
    assert store.steps() == [4, 5] and read_state(store.latest()) == {"step": 20}
    save_step(store, 21)
    assert steps_there(tmp_path / "far") == ["step-00000020", "step-00000021"] and store.steps() == [20, 21]


def test_a_machine_with_later_checkpoints_than_were_uploaded_goes_on_with_its_own(tmp_path):
    store, _ = two_machines(tmp_path)
    Checkpoints(tmp_path / "first", 2).save(30, {"step": 30}, lambda folder: None)
    assert read_state(store.latest()) == {"step": 30} and store.steps() == [5, 30]


def test_a_step_is_not_uploaded_beside_later_ones_and_deletes_none(tmp_path):
    store, _ = two_machines(tmp_path)
    store.save(6, {"step": 6}, lambda folder: None)
    there = "step-00000020 is there, of another process that trains under this run.name"
    with pytest.raises(ConfigError, match=f"step-00000006, kept in {tmp_path}/first, was not copied to .*: {there}"):
        store.close()
    assert steps_there(tmp_path / "far") == ["step-00000019", "step-00000020"]


class Remembering(MemoryFileSystem):
    """Lists what it has listed before, as those of cloud stores do."""

    protocol, listed = "remembering", {}

    def glob(self, path: str, **options) -> list[str]:
        return self.listed.setdefault(path, super().glob(path, **options))

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listed.clear()


def test_what_other_machines_upload_is_seen_where_listings_are_remembered(tmp_path):
    register_implementation("remembering", Remembering, clobber=True)
    store = Checkpoints(tmp_path / "here", 2, "remembering://bucket/run", "owner")
    assert store.latest() is None
    files, root = url_to_fs(store.upload)
    files.pipe({f"{root}/step-00000007/state.json": b'{"step": 7}', f"{root}/step-00000007/whole": b"owner"})
    assert read_state(store.latest()) == {"step": 7}


def test_the_best_policy_travels_with_a_checkpoint_and_replaces_one_of_before(tmp_path):
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
    (best / "model.safetensors").write_text("of before")
    restore_best(folder, best)
    assert (best / "model.safetensors").read_text() == "best"


def test_the_best_policy_of_a_checkpoint_that_was_saved_here_replaces_none(tmp_path):
    best = tmp_path / "checkpoints" / "rl"
    best.mkdir(parents=True)
    store = checkpoints(configured(tmp_path), tmp_path / "here")
    save(store, 5, 1, SimpleNamespace(save_state=lambda folder: None, to_record=dict), Ledger(1, 0), Selection(0), None, best)
    (best / "model.safetensors").write_text("own")
    restore_best(store.latest(), best)
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
    with pytest.raises(
        ConfigError, match="learner.upload: step-00000001, kept in .*, was not copied to file:///nowhere in 0.2 s"
    ):
        store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("locked://bucket/runs", "nothing could be written to {}/tiny: NoCredentialsError: Unable to locate credentials"),
        (
            "file:///dev/null/far",
            "nothing could be written to {}/tiny: NotADirectoryError: [Errno 20] Not a directory: '/dev/null/far",
        ),
        ("silent://bucket/runs", "nothing could be written to {}/tiny in 0.2 s"),
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


@pytest.mark.parametrize(
    ("silent", "call", "message"),
    [
        ("get", Checkpoints.latest, "step-00000001 was not fetched from {} in 0.2 s"),
        ("glob", Checkpoints.latest, "the checkpoints in {} were not listed in 0.2 s"),
        ("cat_file", Checkpoints.check_upload, "the checkpoints in {} were not listed in 0.2 s"),
        ("rm", Checkpoints.clear_upload, "the checkpoints in {} were not deleted in 0.2 s"),
    ],
)
def test_a_store_that_stops_answering_is_not_waited_for(tmp_path, monkeypatch, silent: str, call: Callable, message: str):
    kind = type("Stopping", (MemoryFileSystem,), {"protocol": f"stopping-{silent}"})
    register_implementation(kind.protocol, kind, clobber=True)
    url = f"{kind.protocol}://bucket/run"
    save_step(Checkpoints(tmp_path / "here", 2, url, "owner"), 1)
    for limit in ("UPLOAD_S", "ANSWER_S"):
        monkeypatch.setattr(checkpoint, limit, 0.2)
    monkeypatch.setattr(kind, silent, lambda *arguments, **options: Event().wait(5))
    started = monotonic()
    with pytest.raises(ConfigError, match=f"learner.upload: {message.format(url)}"):
        call(Checkpoints(tmp_path / "there", 2, url, "owner"))
    assert monotonic() - started < 4 and Checkpoints(tmp_path / "there", 2).latest() is None


def test_a_store_that_cannot_be_listed_or_read_is_named(tmp_path, monkeypatch):
    class Refusing(MemoryFileSystem):
        protocol = "refusing"

    def refuse(*arguments, **options) -> None:
        raise NoCredentialsError("the token has expired\nand more")

    register_implementation("refusing", Refusing, clobber=True)
    save_step(Checkpoints(tmp_path / "here", 2, "refusing://bucket/run", "owner"), 1)
    for method, what in (("get", "step-00000001 was not fetched from"), ("glob", "the checkpoints in")):
        monkeypatch.setattr(Refusing, method, refuse)
        with pytest.raises(ConfigError, match=f"upload: {what} refusing://.*: NoCredentialsError: the token has expired$"):
            Checkpoints(tmp_path / "there", 2, "refusing://bucket/run", "owner").latest()


def test_the_trial_of_an_upload_leaves_nothing_behind(tmp_path):
    checkpoint.check_writable(f"file://{tmp_path}/far/tiny")
    assert list((tmp_path / "far" / "tiny").iterdir()) == []
