"""Checkpoints of stage 2 as models, with parts written as two ranks write them."""

import shutil
from pathlib import Path

import pytest
import torch

from srl.commands import weights
from srl.config import Config, load_config
from srl.driver.resume import checkpoints
from srl.learner import export
from srl.learner.batch import Example, collate
from srl.learner.checkpoint import write_part
from srl.learner.export import export_checkpoint
from srl.learner.lora import add_adapters
from srl.learner.model import TokenLogprobs, load_model
from srl.main import main
from srl.protocols.chat import load_tokenizer, model_folder

BATCH = collate([Example("a", [3, 1, 4, 1, 5, 9, 2, 6], [0.0] + [1.0] * 7)], 0)


def policy(config: Config, seed: int) -> TokenLogprobs:
    """The base model, with what is trained of it moved at random."""
    module, learner = TokenLogprobs(load_model(model_folder("embedded"), config.model)), config.learner
    if learner.lora_rank:
        add_adapters(module.model, learner.lora_rank, learner.lora_alpha, learner.lora_targets)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter) * parameter.requires_grad
    return module


def save(module: TokenLogprobs, folder: Path) -> None:
    trained = [(name, parameter.data) for name, parameter in module.named_parameters() if parameter.requires_grad]
    (folder / "policy").mkdir()
    for rank in range(2):
        mine = {f"weight:{name}": tensor for name, tensor in trained[rank::2]}
        write_part(
            folder / "policy", rank, mine | {f"frozen-previous:{trained[0][0]}": trained[0][1] + 1}, 7, torch.get_rng_state()
        )


@pytest.mark.parametrize("rank", [0, 4])
def test_a_checkpoint_becomes_a_model_that_says_what_the_policy_said(tmp_path, rank, capsys):
    settings = [f"run.directory={tmp_path}", "rl.start=base", f"learner.lora_rank={rank}"]
    config = load_config(None, settings)
    store = checkpoints(config, tmp_path / "tiny")
    policies = {step: policy(config, step) for step in (3, 4)}
    for step, module in policies.items():
        store.save(step, {}, lambda folder, module=module: save(module, folder))
    for step, asked in ((4, []), (3, ["--step", "3"])):
        folder = tmp_path / str(step)
        assert main(["weights", "--to", str(folder), *asked, *settings]) == 0
        assert f"the policy after {step} steps" in capsys.readouterr().out
        found = TokenLogprobs(load_model(str(folder), config.model))(BATCH)[0]
        torch.testing.assert_close(found, policies[step](BATCH)[0], rtol=1e-4, atol=1e-4)
    assert load_tokenizer(str(tmp_path / "4")).chat_template


def test_a_checkpoint_that_stage_2_deletes_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch, capsys):
    settings = [f"run.directory={tmp_path}", "rl.start=base"]
    config = load_config(None, settings)
    store = checkpoints(config, tmp_path / "tiny")
    module = policy(config, 3)
    store.save(3, {}, lambda folder: save(module, folder))

    def deleted_first(*arguments) -> None:
        shutil.rmtree(store.path(3))
        export_checkpoint(*arguments)

    monkeypatch.setattr(export, "export_checkpoint", deleted_first)
    assert main(["weights", "--to", str(tmp_path / "model"), *settings]) == 0
    found = TokenLogprobs(load_model(str(tmp_path / "model"), config.model))(BATCH)[0]
    torch.testing.assert_close(found, module(BATCH)[0], rtol=1e-4, atol=1e-4)
    assert sorted(file.name for file in (tmp_path / "tiny").iterdir()) == ["resume"]


def test_of_a_checkpoint_that_is_half_deleted_the_next_one_takes_the_place(tmp_path, monkeypatch, capsys):
    settings = [f"run.directory={tmp_path}", "rl.start=base"]
    config = load_config(None, settings)
    store = checkpoints(config, tmp_path / "tiny")
    for step in (3, 4):
        store.save(step, {}, lambda folder, step=step: save(policy(config, step), folder))
    store.path(4).rename(tmp_path / "later")
    (store.path(3) / "policy" / "part-0.safetensors").unlink()
    monkeypatch.setattr(weights.time, "sleep", lambda seconds: (tmp_path / "later").rename(store.path(4)))
    assert main(["weights", "--to", str(tmp_path / "model"), *settings]) == 0
    assert "the policy after 4 steps" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_at_the_target_is_never_replaced(tmp_path, capsys, kind):
    precious = tmp_path / "mine" if kind == "file" else tmp_path / "mine" / "other-model"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    settings = [f"run.directory={tmp_path}", "rl.start=base"]
    checkpoints(load_config(None, []), tmp_path / "tiny").save(5, {}, lambda folder: None)
    assert main(["weights", "--to", str(tmp_path / "mine"), *settings]) == 2
    assert "mine: is there and not empty" in capsys.readouterr().err
    assert precious.read_text() == "precious"


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path, capsys):
    settings = [f"run.directory={tmp_path}", "rl.start=base", "--to", str(tmp_path / "model")]
    assert main(["weights", *settings]) == 2
    assert "no such checkpoint; stage 2 keeps them while it runs" in capsys.readouterr().err
    store = checkpoints(load_config(None, []), tmp_path / "tiny")
    store.save(5, {}, lambda folder: None)
    assert main(["weights", "--step", "4", *settings]) == 2
    assert "there are those of steps 5" in capsys.readouterr().err


def test_a_step_that_is_here_is_written_whatever_was_uploaded_and_the_newest_is_looked_for_there_too(tmp_path, capsys):
    settings = [f"run.directory={tmp_path}", "rl.start=base"]
    config = load_config(None, settings)
    checkpoints(config, tmp_path / "tiny").save(3, {}, lambda folder: save(policy(config, 3), folder))
    others = tmp_path / "far" / "tiny" / "step-00000009"
    others.mkdir(parents=True)
    (others / "whole").write_text("another")
    settings += [f"learner.upload=file://{tmp_path}/far", "--to", str(tmp_path / "model")]
    assert main(["weights", *settings]) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main(["weights", "--step", "3", *settings]) == 0
    assert "the policy after 3 steps" in capsys.readouterr().out


def test_after_the_end_the_policy_is_pointed_to(tmp_path, capsys):
    (tmp_path / "tiny" / "checkpoints" / "rl").mkdir(parents=True)
    assert main(["weights", f"run.directory={tmp_path}", "--to", str(tmp_path / "model")]) == 2
    assert f"the best policy is {tmp_path}/tiny/checkpoints/rl, a Hugging Face folder" in capsys.readouterr().err
