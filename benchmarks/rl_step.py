"""One GRPO step by phase, and what sampling ahead gains: python -m benchmarks.rl_step [--prompts N] [--group N] [--simulate]

Measured: rollout (vLLM), learner (packed, DeepSpeed) and weight sync of one step on the embedded model; alternating with it
the same step as a plain PyTorch loop does it: `generate` of transformers on all prompts at once, padded batches, AdamW. That
stands in for TRL's GRPOTrainer, which the lock file does not install. Same prompts, group size and longest response.

Simulated: steps per hour with `rl.ahead` 0, 1, 2 and 4 against 0, with the real ledger, and engines that sample groups of
log-normal length side by side; no model runs. Prints JSON.
"""

import argparse
import heapq
import json
import random
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import median

import ray
import torch
from transformers import AutoModelForCausalLM

from srl.config import Config, load_config
from srl.driver.ledger import Ledger
from srl.driver.session import Session, connect
from srl.learner.batch import Example, collate, policy_example
from srl.learner.group import LearnerGroup, token_weight
from srl.learner.losses import sft_loss
from srl.learner.model import TokenLogprobs, load_model
from srl.observe.run_directory import RunDirectory
from srl.protocols.chat import load_tokenizer, model_folder
from srl.tasks.problems import chain_problems

RATE, WAIT_S = 1e-5, 600


class PlainTrainer:
    """One process, no vLLM, no packing."""

    def __init__(self, config: Config, pad: int, stop: list[int]):
        torch.set_num_threads(config.learner.threads)
        self.config, self.pad, self.stop = config, pad, stop
        base = model_folder("embedded")
        self.module = TokenLogprobs(load_model(base, config.model))
        # The same weights for sampling, with the attention that `generate` wants.
        self.sampler = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.adam = torch.optim.AdamW(self.module.parameters(), lr=RATE)

    def sample(self, prompts: list[list[int]], longest: int) -> tuple[int, float]:
        """(tokens sampled, seconds) for all prompts at once, padded on the left."""
        started, width = time.monotonic(), max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts])
        with torch.no_grad():
            found = self.sampler.generate(
                ids, attention_mask=(ids != self.pad).long(), do_sample=True, temperature=1.0, top_k=0,
                max_new_tokens=longest, eos_token_id=self.stop, pad_token_id=self.pad,
            )  # fmt: skip
        return int((found[:, width:] != self.pad).sum()), time.monotonic() - started

    def train(self, examples: list) -> float:
        """Seconds of one optimizer step on rows padded to the longest sequence."""
        started, longest = time.monotonic(), max(len(example.token_ids) for example in examples)
        size = max(1, self.config.learner.micro_batch_tokens // longest)
        denominator = token_weight(examples)
        for start in range(0, len(examples), size):
            row = [padded(example, longest) for example in examples[start : start + size]]
            batch = collate(row, self.pad)
            (sft_loss(self.module(batch)[0], batch)[0] / denominator).backward()
        self.adam.step()
        self.adam.zero_grad()
        return time.monotonic() - started


def padded(example: Example, length: int) -> Example:
    missing = length - len(example.token_ids)
    columns = ("weights", "advantages", "old_logprobs")
    changed = {name: getattr(example, name) + [0.0] * missing for name in columns}
    return replace(example, token_ids=example.token_ids + [0] * missing, **changed)


def measured(prompts: int, group: int, rounds: int, folder: str) -> dict:
    config = load_config(None, ["learner.threads=1", "rollout.threads=1", f"run.directory={folder}", "run.fresh=true"])
    connect(config)
    session = Session(config, RunDirectory(config))
    learners = LearnerGroup(config, session.base, None, 0.0, 1.0)
    plain = (
        ray.remote(PlainTrainer)
        .options(num_cpus=0)
        .remote(config, load_tokenizer(session.base).pad_token_id or 0, session.chat.stop_ids)
    )
    longest = config.rollout.max_attempt_tokens
    ours, theirs = [], []
    for number in range(rounds + 1):
        problems = chain_problems("train", prompts, number, 4, 4)
        asked = [
            session.new_trajectory(f"b/{number}/{problem.prompt_id}/{member}", problem)
            for problem in problems
            for member in range(group)
        ]
        marks = [time.monotonic()]
        done = session.pool().generate("attempt", asked, 1.0)
        marks.append(time.monotonic())
        examples = [policy_example(trajectory, 1.0) for trajectory in done if trajectory.sampled_tokens()]
        learners.train(examples, sft_loss, RATE)
        marks.append(time.monotonic())
        session.pool().load_weights(learners.publish(session.pool().version + 1))
        marks.append(time.monotonic())
        prompt_ids = [trajectory.prompt_token_ids for trajectory in done]
        tokens, sampling = ray.get(plain.sample.remote(prompt_ids, longest), timeout=WAIT_S)
        training = ray.get(plain.train.remote(examples), timeout=WAIT_S)
        if number:  # the first round warms up
            sampled = sum(trajectory.sampled_tokens() for trajectory in done)
            ours.append([end - start for start, end in pairwise(marks)] + [sampled])
            theirs.append([sampling, training, tokens])
    session.close()
    rollout, learner, sync, sampled = (median(column) for column in zip(*ours, strict=True))
    sampling, training, tokens = (median(column) for column in zip(*theirs, strict=True))
    parts = {"rollout": rollout, "learner": learner, "sync": sync}
    return {
        "trajectories": prompts * group,
        "seconds": parts,
        "share": {name: part / sum(parts.values()) for name, part in parts.items()},
        "sampled_tokens": sampled,
        "plain_seconds": {"rollout": sampling, "learner": training},
        "plain_sampled_tokens": tokens,
        "times_faster": (sampling + training) / sum(parts.values()),
        "times_faster_at_sampling": (sampling / tokens) / (rollout / sampled),
        "times_faster_at_training": training / learner,
    }


def simulated(ahead: int, steps: int, batch: int, engines: int, train_s: float, sync_s: float, spread: float, seed: int) -> dict:
    """Seconds of `steps` steps. Each engine samples one group at a time, of log-normal length with median 1 s."""
    rng, ledger = random.Random(seed), Ledger(batch, ahead)
    now, queue, running, finished, ages = 0.0, [], [], set(), Counter()
    free = engines

    def fill() -> None:
        nonlocal free
        while queue and free:
            heapq.heappush(running, (now + rng.lognormvariate(0.0, spread), queue.pop(0)))
            free -= 1

    def advance(until: float) -> None:
        """Let engines work until that time."""
        nonlocal now, free
        while running and running[0][0] <= until:
            now, position = heapq.heappop(running)
            finished.add(position)
            free += 1
            fill()
        now = max(now, until)

    for step in range(steps):
        queue += ledger.admit(step, steps * batch)
        fill()
        while (chosen := ledger.choose(step, finished)) is None:
            advance(running[0][0])
        ages.update(step - ledger.in_flight[position] for position in chosen)
        finished -= set(chosen)
        advance(now + train_s + sync_s)
        ledger.settle(dict.fromkeys(chosen, "trained"))
    return {"seconds": now, "oldest": max(ages), "mean_age": sum(age * n for age, n in ages.items()) / ages.total()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="/tmp/srl-rl-step")
    parser.add_argument("--simulate", action="store_true", help="only the simulation")
    options = parser.parse_args()
    result: dict = {} if options.simulate else {"step": measured(options.prompts, options.group, options.rounds, options.folder)}
    # One step samples 64 groups on 16 engines, 4 s and a tail; training takes 3 s.
    shape = {"steps": 200, "batch": 64, "engines": 16, "train_s": 3.0, "sync_s": 0.2, "spread": 0.8, "seed": 0}
    found = {ahead: simulated(ahead, **shape) for ahead in (0, 1, 2, 4)}
    for value in found.values():
        value["times_faster_than_synchronous"] = found[0]["seconds"] / value["seconds"]
    result["simulated"] = {"shape": shape, "ahead": found}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
