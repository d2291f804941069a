"""What the learner writes for others to read: a Hugging Face folder, whole or the one before."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srl.config import ModelConfig
from srl.learner.lora import published
from srl.learner.model import TokenLogprobs, TokenValues, load_critic, load_model, save_folder
from srl.protocols.chat import model_folder

BASE = model_folder("embedded")


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor().clone() for name, _, tensor in published(module)}


def test_a_folder_is_replaced_by_one_that_transformers_reads(tmp_path):
    module = TokenLogprobs(load_model(BASE, ModelConfig()))
    folder = tmp_path / "rl"
    save_folder(module, state(module), BASE, folder)
    (folder / "of-the-first").mkdir()
    with torch.no_grad():
        module.model.get_input_embeddings().weight += 1
    save_folder(module, state(module), BASE, folder)
    assert not (folder / "of-the-first").exists() and [path.name for path in tmp_path.iterdir()] == ["rl"]
    found = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in module.model.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(BASE).get_vocab()


def test_a_critic_keeps_its_head(tmp_path):
    critic = TokenValues(load_model(BASE, ModelConfig()))
    torch.nn.init.normal_(critic.value_head.weight)
    save_folder(critic, state(critic), BASE, tmp_path / "critic")
    assert torch.equal(load_critic(str(tmp_path / "critic"), ModelConfig()).value_head.weight, critic.value_head.weight)
    assert not load_critic(BASE, ModelConfig()).value_head.weight.any()
