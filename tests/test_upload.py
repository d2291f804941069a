"""Uploaded checkpoints of stage 2: whose they are, what `fresh` does to them, and the best policy that goes with them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from srl.config import Config, ConfigError, load_config
from srl.driver.ledger import Ledger
from srl.driver.resume import checkpoints, prepare_upload, restore_best, save
from srl.driver.selection import Selection
from srl.learner.checkpoint import Checkpoints, read_state


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
