"""Tokens per second of the learner: python -m benchmarks.learner [--examples N] [--rounds N] [--memory]

One learner actor (Ray, DeepSpeed) takes optimizer steps on the embedded model; alternating with it, a plain PyTorch loop in a
process of its own does the same on the same packed rows, and on rows that are padded to the longest sequence of each mini-batch,
as trainers without packing do. Losses must agree. With --memory also the peak memory per actor of two ranks by ZeRO stage.
Prints JSON. TRL is compared only where it is installed, which the lock file does not do: then this says so.
"""

import argparse
import importlib.util
import json
import random
import time
from statistics import median

import ray
import torch

from srl.config import Config, load_config
from srl.driver.session import connect
from srl.learner.batch import Example, collate
from srl.learner.group import LearnerGroup, token_weight
from srl.learner.losses import sft_loss
from srl.learner.model import TokenLogprobs, load_model
from srl.learner.packing import pack
from srl.protocols.chat import model_folder

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


def speed(config: Config, count: int, rounds: int) -> dict[str, float]:
    learners = LearnerGroup(config, model_folder("embedded"), None, 0.0, CLIP)
    plain = ray.remote(PlainLoop).options(num_cpus=0).remote(config)
    seconds: dict[str, list[float]] = {"learner": [], "plain": [], "padded": []}
    tokens = []
    for number in range(rounds + 1):
        examples = examples_of(count, number)
        losses = {}
        for name in seconds:
            started = time.monotonic()
            if name == "learner":
                losses[name] = learners.train(examples, sft_loss, RATE)["loss"]
            else:
                losses[name] = ray.get(plain.step.remote(examples, name == "padded"), timeout=WAIT_S)
            if number:  # the first round warms up
                seconds[name].append(time.monotonic() - started)
        tokens.append(sum(len(example.token_ids) for example in examples))
        # The plain model steps twice a round, so only the first round's losses are of the same weights.
        assert number or abs(losses["learner"] - losses["plain"]) < 1e-4, losses
    learners.close()
    took = {name: median(times) for name, times in seconds.items()}
    return {
        "tokens_per_s": {name: median(tokens) / value for name, value in took.items()},
        "learner_over_plain_loop_on_the_same_rows": took["plain"] / took["learner"],
        "learner_over_padded_loop": took["padded"] / took["learner"],
    }


def memory(config: Config, stage: int) -> list[float]:
    """MiB at the peak of each of two ranks after two steps."""
    settings = {"workers": 2, "zero_stage": stage, "cpus": 0.5}
    changed = config.model_copy(update={"learner": config.learner.model_copy(update=settings)})
    learners = LearnerGroup(changed, model_folder("embedded"), None, 0.0, CLIP)
    for number in range(2):
        learners.train(examples_of(16, number), sft_loss, RATE)
    found = ray.get([rank.peak_memory.remote() for rank in learners.ranks], timeout=WAIT_S)
    learners.close()
    return [round(value) for value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=64, help="sequences per optimizer step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    config = load_config(None, ["learner.threads=1"])
    connect(config)
    result: dict = speed(config, options.examples, options.rounds)
    if options.memory:
        result["peak_mib_of_two_ranks_by_zero_stage"] = {stage: memory(config, stage) for stage in range(4)}
    if importlib.util.find_spec("trl") is None:
        result["trl"] = "not installed, not compared"
    print(json.dumps(result, indent=1), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
