import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from srl.learner.batch import Example, collate
from srl.learner.lora import LoraLinear, adapters_off, add_adapters, published, stochastic_bfloat16
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


def wide_layer() -> LoraLinear:
    """Weights of 0.5 to 1 in size, which are 2^-8 apart in bfloat16."""
    torch.manual_seed(0)
    base = torch.nn.Linear(512, 256, bias=False, dtype=torch.bfloat16)
    base.weight.data = (torch.rand(256, 512) / 2 + 0.5).mul(torch.randn(256, 512).sign()).bfloat16()
    return LoraLinear(base, rank=8, alpha=8.0)


def test_in_bfloat16_changes_below_half_a_step_are_published_as_their_sum_is():
    layer, inputs = wide_layer(), torch.randn(64, 512)
    # At most 8 x 0.005 / sqrt(512) = 0.0018, and half a step is 2^-9 = 0.00195.
    layer.lora_b.data = 0.005 * torch.randn(256, 8).sign().bfloat16()
    change = layer.lora_b.data.float() @ layer.lora_a.data.float()
    assert change.abs().max() < 2**-9
    base = layer.base.weight.data.float()
    wanted, got = inputs @ change.T, inputs @ (layer.merged().float() - base).T
    assert float((got * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=0.1)
    assert torch.equal((base + change).bfloat16().float(), base), "the nearest would be the base again"
    assert torch.equal(layer.merged(), layer.merged())


def test_a_fresh_adapter_publishes_the_base_bit_for_bit_in_bfloat16():
    layer = wide_layer()
    assert torch.equal(layer.merged().view(torch.int16), layer.base.weight.data.view(torch.int16))


def test_a_value_a_quarter_of_the_way_to_the_next_bfloat16_gets_there_a_quarter_of_the_time():
    # From 1 to 2 bfloat16 numbers are 2^-7 apart. Of 100,000 a quarter's share has a standard deviation of 0.0014.
    for sign in (1.0, -1.0):
        rounded = stochastic_bfloat16(torch.full((100_000,), sign * (1 + 2**-9)))
        assert set(rounded.tolist()) == {sign, sign * (1 + 2**-7)}
        assert float((rounded.abs() > 1).float().mean()) == pytest.approx(0.25, abs=0.007)


def test_what_is_no_number_stays_none_in_bfloat16():
    # GPUs make the NaN of the bits 0x7fffffff.
    values = torch.tensor([0x7FFFFFFF, 0x7F800000, -0x800000], dtype=torch.int32).repeat(1000).view(torch.float32)
    rounded = stochastic_bfloat16(values).view(1000, 3).unique(dim=0)
    assert rounded[:, 0].isnan().all() and set(rounded[:, 1].tolist()) == {float("inf")}
    assert set(rounded[:, 2].tolist()) == {float("-inf")}


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
