"""Checkpoint folders: whole or absent, and only the newest are kept."""

import os
from pathlib import Path

import pytest
import torch

from srl.learner import checkpoint
from srl.learner.checkpoint import Checkpoints, read_parts, read_state, write_part

NOISE = torch.get_rng_state()


def write(folder: Path) -> None:
    write_part(folder, 0, {"weight:a": torch.ones(2), "exp_avg:a": torch.zeros(2)}, 7, NOISE)
    write_part(folder, 1, {"weight:b": torch.full((3,), 2.0)}, 7, NOISE)


def test_what_was_saved_is_read_by_any_number_of_ranks(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    store.save(4, {"step": 4}, write)
    assert read_state(store.latest()) == {"step": 4}
    for rank in range(3):
        states, steps, generator = read_parts(store.latest(), rank)
        found = {name: {kind: tensor.tolist() for kind, tensor in state.items()} for name, state in states}
        assert steps == 7 and (generator is None) == (rank == 2)
        assert found == {"a": {"weight": [1.0, 1.0], "exp_avg": [0.0, 0.0]}, "b": {"weight": [2.0, 2.0, 2.0]}}


def test_the_newest_are_kept_and_a_step_saved_again_replaces_the_first(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 10, 9):
        store.save(step, {"step": step}, write)
    assert store.steps() == [9, 10] and store.latest().name == "step-00000010"


def test_a_writer_that_dies_leaves_the_checkpoint_before(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    store.save(1, {"step": 1}, write)

    def dies(folder: Path) -> None:
        (folder / "part-0.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(2, {"step": 2}, dies)
    assert store.steps() == [1] and read_state(store.latest()) == {"step": 1}
    store.save(2, {"step": 2}, write)
    assert store.steps() == [1, 2]
    assert not list(tmp_path.glob("*.partial"))


def test_all_files_are_on_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))

    def nested(folder: Path) -> None:
        (folder / "policy").mkdir()
        write(folder / "policy")

    Checkpoints(tmp_path, keep=2).save(4, {}, nested)
    names = {str(Path(name).relative_to(tmp_path / "step-00000004.partial")) for name in flushed}
    assert names == {".", "policy", "policy/part-0.safetensors", "policy/part-1.safetensors", "state.json"}


def test_a_folder_without_parts_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no part-"):
        read_parts(tmp_path, 0)


def test_checkpoints_are_copied_away_and_fetched_where_there_are_none(tmp_path):
    url = f"file://{tmp_path}/far"
    here = Checkpoints(tmp_path / "here", keep=2, upload=url)
    for step in (1, 2, 3, 4):
        here.save(step, {"step": step}, write)
        here.sending[1].result(60)
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["step-00000003", "step-00000004"]
    there = Checkpoints(tmp_path / "there", keep=2, upload=url)
    assert read_state(there.latest()) == {"step": 4}
    states, steps, _ = read_parts(there.latest(), 0)
    assert {name for name, _ in states} == {"a", "b"} and steps == 7


def test_an_upload_that_was_cut_off_does_not_count(tmp_path):
    url = f"file://{tmp_path}/far"
    here = Checkpoints(tmp_path / "here", keep=3, upload=url)
    for step in (1, 2):
        here.save(step, {"step": step}, write)
        here.sending[1].result(60)
    (tmp_path / "far" / "step-00000002" / "whole").unlink()
    assert read_state(Checkpoints(tmp_path / "there", keep=3, upload=url).latest()) == {"step": 1}


def test_what_uploads_that_were_cut_off_have_left_goes_with_the_next_whole_one(tmp_path):
    far = tmp_path / "far"
    here = Checkpoints(tmp_path / "here", keep=2, upload=f"file://{far}")
    for step in (1, 2, 5):
        for killed in (step - 1, step, 9):  # before, while it is copied for the first time, and of a past that was given up
            (far / f"step-{killed:08d}").mkdir(parents=True, exist_ok=True)
            (far / f"step-{killed:08d}" / "part-0.safetensors").touch()
        here.save(step, {"step": step}, write)
        here.sending[1].result(60)
    assert sorted(path.name for path in far.iterdir()) == ["step-00000002", "step-00000005"]
    assert all((folder / "whole").exists() for folder in far.iterdir())
