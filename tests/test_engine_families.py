"""Families of models from the learner to the engine: both say the same of what was sampled, before and after new weights."""

import copy
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from srl.config import load_config
from srl.learner.batch import Example, collate
from srl.learner.lora import published
from srl.learner.model import FAMILIES, TokenLogprobs, as_saved, load_model
from srl.protocols.chat import model_folder
from srl.rollout.engine import Completion, Engine, Sampling
from srl.weights.bucket import pack
from tests.test_families import tiny

TOKENIZER = model_folder("embedded")
LENGTH = {"max_position_embeddings": 512}
HEADS = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64}  # whole vectors of the engine
OWN = {
    "gpt2": {"n_embd": 128, "n_head": 2, "n_positions": 512},
    "opt": {"word_embed_proj_dim": 128},
    "qwen3_moe": {"moe_intermediate_size": 32},
}
SETTINGS = ["rollout.threads=1", "rollout.kv_cache_gib=0.1", "model.max_length=512"]
PROMPTS = [[(5 * i + n) % 60 + 3 for i in range(9 + n)] for n in range(8)]
OFTEN = "qwen3_moe"  # its experts have other names in a folder, and another layout in the engine


def sampled(folder: str, new: str) -> list[list[Completion]]:
    """What an engine makes of the prompts with the weights of the folder, and twice with the new ones, a bucket for each tensor.

    In a process of its own, as everywhere: vLLM changes the classes that it takes from transformers.
    """
    config = load_config(None, SETTINGS)
    engine = Engine(folder, config.model, config.rollout, [])
    found = [sample(engine, 0)]
    for version in (1, 2):
        engine.load_weights([pack([named]) for named in load_file(new).items()], version)
        found.append(sample(engine, version))
    return found


def sample(engine: Engine, version: int) -> list[Completion]:
    for index, prompt in enumerate(PROMPTS):
        engine.submit(f"{version}/{index}", prompt, Sampling(20, 1.0, index))
    done = {}
    while len(done) < len(PROMPTS):
        done |= {completion.request_id: completion for completion in engine.step()}
    return [done[f"{version}/{index}"] for index in range(len(PROMPTS))]


def largest_gap(module: TokenLogprobs, found: list[Completion]) -> float:
    """|engine - learner| in nats, over all sampled tokens."""
    examples = [
        Example(done.request_id, prompt + done.token_ids, [0.0] * len(prompt) + [1.0] * len(done.token_ids))
        for prompt, done in zip(PROMPTS, found, strict=True)
    ]
    with torch.no_grad():
        own = [module(collate([example], 0))[0][-len(done.token_ids) :] for example, done in zip(examples, found, strict=True)]
    return (torch.cat(own) - torch.tensor([x for done in found for x in done.logprobs])).abs().max().item()


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family == OFTEN else pytest.mark.long) for family in sorted(FAMILIES)]
)
def test_engine_and_learner_agree_before_and_after_new_weights(family: str, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny(family, vocab_size=len(tokenizer), **LENGTH, **HEADS, **OWN.get(family, {})))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.06)  # fresh weights say next to nothing about what comes next
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = TokenLogprobs(load_model(str(tmp_path), load_config(None, SETTINGS).model))
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    weights = as_saved(moved.model, [(name, tensor) for name, _, tensor in published(moved)])
    save_file({name: tensor.contiguous() for name, tensor in weights}, new := tmp_path / "new")
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        first, *after = process.submit(sampled, str(tmp_path), str(new)).result()
    assert largest_gap(module, first) < 1e-4 < 0.1 < largest_gap(moved, first)
    for found in after:
        assert largest_gap(moved, found) < 1e-4
