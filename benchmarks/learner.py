"""Tokens per second of the learner: python -m benchmarks.learner [--examples N] [--rounds N] [--trl PYTHON] [--memory]

One learner actor (Ray, DeepSpeed) takes optimizer steps on the embedded model; alternating with it, a plain PyTorch loop in a
process of its own does the same on the same packed rows, and on rows that are padded to the longest sequence of the whole step,
as trainers with rows of one length do. With --trl, a Python that has TRL installed, its SFTTrainer trains on the same sequences
in the same order, padded in each pass to the longest of it, as is its default (its packing needs FlashAttention, which CPUs
lack), with as many sequences in a pass as have the learner's budget of tokens on average. One thread each; the first losses of
the learner, the plain loop on packed rows and TRL must agree.

With --memory instead: the peak memory per actor of two ranks by ZeRO stage, of a Qwen2 with 57 M random parameters. Prints JSON.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import ray
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.refusal import check_program, refusing
from benchmarks.trl_trainers import Trainer, rows_per_pass
from srl.commands.numbers import at_least
from srl.config import Config, load_config
from srl.driver.cluster import connect
from srl.learner.batch import Example, collate
from srl.learner.group import LearnerGroup, token_weight
from srl.learner.losses import sft_loss
from srl.learner.model import TokenLogprobs, load_model
from srl.learner.packing import pack
from srl.protocols.chat import load_tokenizer, model_folder

RATE, CLIP, WAIT_S = 1e-4, 1.0, 600


class PlainLoop:
    """What one writes without any of this: model, AdamW, backward."""

    def __init__(self, config: Config):
        torch.set_num_threads(config.learner.threads)
        self.module = TokenLogprobs(load_model(model_folder("embedded"), config.model))
        self.adam = torch.optim.AdamW(self.module.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.95))
        self.budget = config.learner.micro_batch_tokens

    def step(self, examples: list[Example], padded: bool) -> float:
        """One optimizer step; the loss."""
        denominator, total = token_weight(examples), 0.0
        self.adam.zero_grad()
        for row in self.rows(examples, padded):
            batch = collate(row, 0)
            loss = sft_loss(self.module(batch)[0], batch)[0] / denominator
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), CLIP)
        self.adam.step()
        return total

    def rows(self, examples: list[Example], padded: bool) -> list[list[Example]]:
        if not padded:
            plan = pack([len(example.token_ids) for example in examples], self.budget, 1)[0]
            return [[examples[index] for index in row] for row in plan]
        longest = max(len(example.token_ids) for example in examples)
        full = [with_padding(example, longest) for example in examples]
        size = max(1, self.budget // longest)
        return [full[start : start + size] for start in range(0, len(full), size)]


def with_padding(example: Example, length: int) -> Example:
    missing = length - len(example.token_ids)
    return Example(example.id, example.token_ids + [0] * missing, example.weights + [0.0] * missing)


def examples_of(count: int, seed: int) -> list[Example]:
    """Sequences as long as those of the embedded task, of random tokens; the last two thirds of each are trained."""
    rng = random.Random(seed)
    lengths = [rng.randint(60, 340) for _ in range(count)]
    return [
        Example(str(n), [rng.randrange(100) for _ in range(length)], [0.0] * (length // 3) + [1.0] * (length - length // 3))
        for n, length in enumerate(lengths)
    ]


def trl_trainer(python: str, config: Config, batches: list[list[Example]]) -> Trainer:
    examples = [example for batch in batches for example in batch]
    rows = [
        {
            "input_ids": example.token_ids,
            "labels": [token if weight else -100 for token, weight in zip(example.token_ids, example.weights, strict=True)],
        }
        for example in examples
    ]
    mean, count = sum(len(example.token_ids) for example in examples) / len(examples), len(batches[0])
    job = {"trainer": "sft", "model": model_folder("embedded"), "threads": config.learner.threads, "rate": RATE}
    size = rows_per_pass(count, mean, config.learner.micro_batch_tokens)
    return Trainer(python, {**job, "batch": count, "rows_per_pass": size, "defaults": False, "rows": rows})


def speed(config: Config, count: int, rounds: int, trl: str) -> dict[str, float]:
    batches = [examples_of(count, number) for number in range(rounds + 1)]
    tokens = [sum(len(example.token_ids) for example in batch) for batch in batches]
    learners = LearnerGroup(config, model_folder("embedded"), None, 0.0, CLIP)
    plain = ray.remote(PlainLoop).options(num_cpus=0).remote(config)
    sides: dict[str, Callable[[list[Example]], float | None]] = {
        "learner": lambda examples: learners.train(examples, sft_loss, RATE)["loss"],
        "plain_loop": lambda examples: ray.get(plain.step.remote(examples, False), timeout=WAIT_S),
        "padded_loop": lambda examples: ray.get(plain.step.remote(examples, True), timeout=WAIT_S),
    }
    trainer = trl_trainer(trl, config, batches) if trl else None
    if trainer:
        sides["trl"] = lambda examples: trainer.step()["loss_before"]
    rates: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float | None]] = {name: [] for name in sides}
    for number, examples in enumerate(batches):
        for name, step in sides.items():
            started = time.monotonic()
            losses[name].append(step(examples))
            rates[name].append(tokens[number] / (time.monotonic() - started))
    if trainer:
        trainer.close()
        losses["trl"].pop(0)
    learners.close()
    # The plain model steps twice a round, on padded rows second, so only the first losses are of the same weights.
    first = {name: losses[name][0] for name in losses if name != "padded_loop"}
    assert max(first.values()) - min(first.values()) < 1e-3, first
    found = {name: median(values[1:]) for name, values in rates.items()}  # the first round warms up
    ratios = {f"learner_over_{name}": found["learner"] / rate for name, rate in found.items() if name != "learner"}
    return {"tokens_per_s": found, **ratios}


def middle_sized_model(folder: Path) -> str:
    """57 M random parameters with the embedded model's tokenizer: what ZeRO shards shows beside what a process costs anyway."""
    tokenizer = load_tokenizer(model_folder("embedded"))
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=12, tie_word_embeddings=True, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def memory(config: Config, model: str, stage: int) -> dict[str, list[int]]:
    """MiB at the peak of each of two ranks: since they began, model loading included, and of their second step alone."""
    settings = {"workers": 2, "zero_stage": stage, "cpus": 0.5, "micro_batch_tokens": 512}
    changed = config.model_copy(update={"learner": config.learner.model_copy(update=settings)})
    learners = LearnerGroup(changed, model, None, 0.0, CLIP)

    def peaks() -> list[int]:
        return [round(value) for value in ray.get([rank.peak_memory.remote() for rank in learners.ranks], timeout=WAIT_S)]

    learners.train(examples_of(4, 0), sft_loss, RATE)
    found = {"start": peaks()}
    # From here on Linux counts the peak anew.
    reset = [rank.__ray_call__.remote(lambda _: Path("/proc/self/clear_refs").write_text("5")) for rank in learners.ranks]
    ray.get(reset, timeout=WAIT_S)
    learners.train(examples_of(4, 1), sft_loss, RATE)
    found["step"] = peaks()
    learners.close()
    print(f"ZeRO {stage}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=at_least(1), default=64, help="sequences per optimizer step")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--trl", default="", metavar="PYTHON", help="a Python that has TRL installed")
    parser.add_argument("--memory", action="store_true", help="only the memory by ZeRO stage")
    options = parser.parse_args()
    with refusing(parser):
        check_program("--trl", options.trl)
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed's warning that it found none would go where JSON belongs
    config = load_config(None, ["learner.threads=1"])
    connect(config)
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            model = middle_sized_model(Path(folder))
            result = {"peak_mib_of_two_ranks_by_zero_stage": {stage: memory(config, model, stage) for stage in range(4)}}
    else:
        result = speed(config, options.examples, options.rounds, options.trl)
    print(json.dumps(result, indent=1), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
