"""The vLLM engine in this process, against the same model in transformers."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from srl.config import Config, load_config
from srl.protocols.chat import Chat, model_folder
from srl.rollout.engine import PRIMITIVES, Completion, Engine, Sampling, prepare_environment
from srl.tasks.problems import chain_problems
from srl.weights.bucket import Bucket, pack

PATH = model_folder("embedded")


def config(dtype: str) -> Config:
    settings = [f"model.dtype={dtype}", "rollout.threads=1", "rollout.kv_cache_gib=0.1", "rollout.max_sequences=32"]
    return load_config(None, settings)


def new_engine(dtype: str) -> Engine:
    settings = config(dtype)
    return Engine(PATH, settings.model, settings.rollout, Chat(PATH, settings.prompts).stop_ids)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield new_engine("float32")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chat = Chat(PATH, config("float32").prompts)
    return [chat.opening(problem.question) for problem in chain_problems("test", 16, 7, 4, 6)]


def sample(engine: Engine, prompts: list[list[int]], top_p: float = 1.0, name: str = "r", update=None) -> list[Completion]:
    """One completion for each prompt; `update` is called after the fifth step."""
    for index, prompt in enumerate(prompts):
        engine.submit(f"{name}{index}", prompt, Sampling(60, 1.0, 100 + index, top_p))
    done, steps = {}, 0
    while len(done) < len(prompts):
        done |= {completion.request_id: completion for completion in engine.step()}
        steps += 1
        if steps == 5 and update:
            update()
    return [done[f"{name}{index}"] for index in range(len(prompts))]


def gaps(prompts: list[list[int]], found: list[Completion], dtype: torch.dtype, change: float = 0.0) -> list[float]:
    """|engine - transformers| of every sampled token's log-probability; `change` is added to every weight of the latter."""
    model = AutoModelForCausalLM.from_pretrained(PATH, dtype=dtype).eval()
    result = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += change
        for prompt, done in zip(prompts, found, strict=True):
            logits = model(torch.tensor([prompt + done.token_ids])).logits[0, len(prompt) - 1 : -1].float()
            expected = logits.log_softmax(-1).gather(1, torch.tensor(done.token_ids)[:, None])[:, 0]
            result += (expected - torch.tensor(done.logprobs)).abs().tolist()
    return result


def weights(change: float, dtype: torch.dtype = torch.float32) -> list[Bucket]:
    """The model's weights with `change` added, in buckets of one tensor."""
    model = AutoModelForCausalLM.from_pretrained(PATH, dtype=dtype)
    return [pack([(name, p.detach() + change)]) for name, p in model.named_parameters()]


def test_the_engine_computes_with_as_many_threads_as_it_was_given(engine):
    assert torch.get_num_threads() == config("float32").rollout.threads


def test_a_thread_that_did_not_start_the_engine_steps_it_like_the_one_that_did(engine, prompts):
    with ThreadPoolExecutor(1) as thread:  # Ray Data's event loop is such a thread
        found = thread.submit(sample, engine, prompts[:1], name="elsewhere").result(timeout=60)
    assert found[0].token_ids == sample(engine, prompts[:1], name="here")[0].token_ids


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_log_probabilities_are_of_the_full_distribution_also_under_top_p(engine, prompts, top_p):
    found = sample(engine, prompts, top_p)
    assert sum(x := gaps(prompts, found, torch.float32)) / len(x) < 1e-5 and max(x) < 1e-4
    if top_p < 1:
        free = sample(engine, prompts)
        assert [done.token_ids for done in free] != [done.token_ids for done in found]
        # Sampling from the most likely half only, the mean log-probability is higher than without.
        mean = [math.fsum(x for d in some for x in d.logprobs) / sum(len(d.logprobs) for d in some) for some in (found, free)]
        assert mean[0] > mean[1]


def test_the_second_turn_finds_all_whole_blocks_of_the_first_in_the_cache(engine, prompts):
    first = sample(engine, prompts)
    longer = [prompt + done.token_ids + prompt[-3:] for prompt, done in zip(prompts, first, strict=True)]
    second = sample(engine, longer)
    # The last sampled token was never put through the model.
    reusable = [(len(prompt) + len(done.token_ids) - 1) // 32 * 32 for prompt, done in zip(prompts, first, strict=True)]
    assert [done.cached_tokens for done in second] == reusable and sum(reusable) > 0


def test_samples_of_one_prompt_pay_for_its_whole_blocks_once(engine, prompts):
    shared = sum((prompt[::-1] for prompt in prompts[:4]), [])  # as long as several blocks of 32, and new to the cache
    found = sample(engine, [shared] * 4, name="group")
    assert [done.cached_tokens for done in found] == [0] + [(len(shared) - 1) // 32 * 32] * 3 and len(shared) > 64
    assert len({tuple(done.token_ids) for done in found}) > 1


def test_the_same_weights_loaded_twice_give_the_same_numbers_and_other_weights_others(engine, prompts):
    engine.load_weights(weights(0.001), 1)
    changed = sample(engine, prompts)
    assert max(gaps(prompts, changed, torch.float32, 0.001)) < 1e-4 < max(gaps(prompts, changed, torch.float32))
    engine.load_weights(weights(0.001), 2)
    again = sample(engine, prompts)
    assert [done.token_ids for done in again] == [done.token_ids for done in changed]
    assert [done.logprobs for done in again] == [done.logprobs for done in changed]
    assert {done.weight_version for done in again} == {2} and engine.version == 2


def test_weights_that_arrive_in_the_middle_change_the_tokens_after_them_only(engine, prompts):
    """The first tokens have the old weights' log-probabilities, the rest the new ones', with keys and values made anew."""
    engine.load_weights(weights(0.0), 3)
    found = sample(engine, prompts, update=lambda: engine.load_weights(weights(0.001), 4))
    assert {done.weight_version for done in found} == {3}
    old, new = (gaps(prompts, found, torch.float32, change) for change in (0.0, 0.001))
    position = 0
    for done in found:
        count = len(done.token_ids)
        assert max(old[position : position + 5]) < 1e-4 and max(new[position + 5 : position + count]) < 1e-4
        position += count
    engine.load_weights(weights(0.0), 5)


def test_an_engine_with_a_process_of_its_own_gets_the_same_weights_as_files(engine, prompts, monkeypatch):
    monkeypatch.setattr(engine, "own_process", True)
    for name in ("sleep", "wake_up"):
        monkeypatch.setattr(engine.engine, name, lambda **_: None)
    engine.load_weights(weights(0.001), 6)
    assert max(gaps(prompts, sample(engine, prompts), torch.float32, 0.001)) < 1e-4
    engine.load_weights(weights(0.0), 7)


def test_an_aborted_request_leaves_the_engine_empty(engine, prompts):
    engine.submit("gone", prompts[0], Sampling(60, 1.0, 1))
    engine.step()
    engine.abort(["gone"])
    assert not engine.engine.has_unfinished_requests() and not engine.begun


def test_in_bfloat16_the_mean_gap_is_below_a_hundredth_before_and_after_a_sync(prompts):
    engine = new_engine("bfloat16")
    for version in (0, 1):
        if version:
            engine.load_weights(weights(0.0, torch.bfloat16), version)
        x = gaps(prompts, sample(engine, prompts), torch.bfloat16)
        assert sum(x) / len(x) < 0.01


def test_onednn_keeps_few_kernels_unless_the_environment_says_how_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", environment := {"PATH": os.environ["PATH"]})
    prepare_environment(on_gpu=False)
    assert environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(PRIMITIVES)
    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8"
    prepare_environment(on_gpu=False)
    assert environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "8"
