import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from srl.learner.batch import Example, collate
from srl.learner.lora import adapters_off, add_adapters, published
from srl.learner.losses import sft_loss
from srl.learner.model import TokenLogprobs
from srl.learner.packing import ATTENTION

BATCH = collate([Example("a", [3, 1, 4, 1, 5], [0.0, 1.0, 1.0, 1.0, 1.0]), Example("b", [9, 2, 6], [0.0, 1.0, 1.0])], 0)


def policy(rank: int) -> TokenLogprobs:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=32, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    module = TokenLogprobs(AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION))
    if rank:
        add_adapters(module.model, rank, 8.0, ["q_proj", "down_proj"])
    return module


def trained(steps: int = 3) -> TokenLogprobs:
    module = policy(4)
    adam = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        sft_loss(module(BATCH)[0], BATCH)[0].backward()
        adam.step()
    return module


def test_adapters_change_nothing_at_first_and_only_they_are_trained():
    assert torch.equal(policy(4)(BATCH)[0], policy(0)(BATCH)[0])
    names = {name.rpartition(".")[2] for name, p in trained().named_parameters() if p.requires_grad}
    assert names == {"lora_a", "lora_b"}
    before, after = dict(policy(4).named_parameters()), dict(trained().named_parameters())
    assert all(torch.equal(before[name], p) != p.requires_grad for name, p in after.items())


def test_what_is_published_is_a_model_without_adapters_that_says_the_same():
    module, plain = trained(), policy(0)
    weights = {name: tensor() for name, _, tensor in published(module)}
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(plain(BATCH)[0], module(BATCH)[0])


def test_without_its_adapters_the_model_is_the_one_it_started_from():
    module, start = trained(), policy(0)(BATCH)[0]
    assert not torch.allclose(module(BATCH)[0], start)
    with adapters_off(module):
        assert torch.equal(module(BATCH)[0], start)
    assert not torch.allclose(module(BATCH)[0], start)


def test_targets_that_the_model_lacks_are_named():
    with pytest.raises(ValueError, match=r"learner.lora_targets=\['query'\]: the model has no linear layer"):
        add_adapters(policy(0).model, 2, 4.0, ["query"])


def test_an_adapter_on_a_tied_output_layer_is_refused():
    with pytest.raises(ValueError, match=r"learner.lora_targets=\['q_proj', 'lm_head'\]: lm_head shares its weight"):
        add_adapters(policy(0).model, 2, 4.0, ["q_proj", "lm_head"])
