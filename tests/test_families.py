"""Model families: what the learner computes on a packed row is what the model itself says, sequence by sequence."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from srl.config import ConfigError, ModelConfig
from srl.learner.batch import Example, collate
from srl.learner.lora import published
from srl.learner.model import FAMILIES, TokenLogprobs, as_saved, check_family, load_model
from srl.learner.packing import ATTENTION

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
OWN = {
    "ernie4_5": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "glm4": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "helium": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
}
SEQUENCES = [[(5 * i + 1) % 60 + 3 for i in range(11)], [(7 * i + 2) % 60 + 3 for i in range(17)]]


def tiny(family: str, **settings) -> PretrainedConfig:
    return AutoConfig.for_model(family, **{**TINY, **OWN.get(family, {}), **settings})


def difference(config: PretrainedConfig) -> float:
    """Largest, in nats, between a packed row's log-probabilities and those of the plain model."""
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # fresh weights say next to nothing about what comes next
    packed = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION).eval()
    packed.load_state_dict(own.state_dict())
    examples = [Example(str(n), ids, [0.0] + [1.0] * (len(ids) - 1)) for n, ids in enumerate(SEQUENCES)]
    with torch.no_grad():
        found = TokenLogprobs(packed)(collate(examples, 0))[0]
        logits = [own(torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1) for ids in SEQUENCES]
    expected = [row.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0] for row, ids in zip(logits, SEQUENCES, strict=True)]
    return (found - torch.cat(expected)).abs().max().item()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_packed_log_probabilities_are_those_of_the_plain_model(family):
    assert difference(tiny(family)) < 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_engines_are_sent_the_names_and_tensors_that_they_find_in_the_models_folder(family, tmp_path: Path):
    AutoModelForCausalLM.from_config(tiny(family)).save_pretrained(tmp_path)
    module = TokenLogprobs(load_model(str(tmp_path), ModelConfig()))
    tensors = [(name, tensor) for name, _, tensor in published(module)]
    sent = dict(as_saved(module.model, tensors))
    alone = [dict(as_saved(module.model, [tensor])) for tensor in tensors]  # whatever the size of buckets
    assert sorted(name for each in alone for name in each) == sorted(sent)
    found = load_file(tmp_path / "model.safetensors")
    assert sent.keys() == found.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_policy_says_the_same_while_it_is_trained_as_when_it_is_scored(family, tmp_path: Path):
    AutoModelForCausalLM.from_config(tiny(family)).save_pretrained(tmp_path)
    module = TokenLogprobs(load_model(str(tmp_path), ModelConfig()))
    batch = collate([Example(str(n), ids, [0.0] + [1.0] * (len(ids) - 1)) for n, ids in enumerate(SEQUENCES)], 0)
    assert torch.equal(module.train()(batch)[0], module.eval()(batch)[0])


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("mamba", {"state_size": 8}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    ],
)
def test_families_that_would_be_trained_on_wrong_log_probabilities_are_refused(family, settings, tmp_path: Path):
    config = tiny(family, **settings)
    assert difference(config) > 0.1, "it could be allowed"
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"model.path={tmp_path}: a {family} model cannot be trained here, only ernie4_5, "):
        check_family(str(tmp_path), "model.path")
    with pytest.raises(ConfigError, match=f"a {family} model cannot be trained here"):
        load_model(str(tmp_path), ModelConfig())
