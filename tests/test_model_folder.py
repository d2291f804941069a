"""What the learner writes for others to read: a Hugging Face folder, whole or the one before."""

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

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


def test_a_model_that_is_not_filled_differs_in_its_weights_alone():
    filled, empty = load_model(BASE, ModelConfig()), load_model(BASE, ModelConfig(), filled=False)
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in model.named_parameters()} for model in (filled, empty)]
    assert shapes[0] == shapes[1]
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight  # tied
    buffers = dict(empty.named_buffers())
    assert buffers and all(torch.equal(buffers[name], tensor) for name, tensor in filled.named_buffers())


def test_a_model_that_is_not_filled_reads_no_weights_and_takes_no_memory(tmp_path):
    Qwen2Config(vocab_size=100_000, hidden_size=1024, num_hidden_layers=4).save_pretrained(tmp_path)  # and no weights
    before = psutil.Process().memory_info().rss
    model = load_model(str(tmp_path), ModelConfig(), filled=False)
    assert sum(parameter.nbytes for parameter in model.parameters()) > 1e9
    assert psutil.Process().memory_info().rss - before < 1e8
