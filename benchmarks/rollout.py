"""The rollout engine against plain vLLM, in one process, on one model.

    python -m benchmarks.rollout [--model FOLDER] [--trajectories 256] [--rounds 3] [section.key=value ...]

Prints JSON. Every ratio is the median over rounds that alternate between the two sides, so that what else the machine does
hits both:

worker_to_generate         tokens/s of single-turn trajectories through the worker over those of `LLM.generate`, same seeds
continuous_to_barrier      tokens/s of two-turn trajectories of mixed length over the same with a barrier after each turn, where
                           as many trajectories are begun together as the engine runs at once
continuous_to_one_barrier  the same against a single barrier between the first and the second turns of all of them
prefix_hits_turn_2         tokens found in the prefix cache over the whole blocks that turn 1 left there
two_workers_to_one         tokens/s of two worker actors over one; null where there is one core (or GPU) only

Without --model a Qwen2 of 3 M random parameters is made, whose answers end at random or at their length limit.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from srl.config import Config, load_config
from srl.protocols.protocol import Generate, Protocol, Say, Stop
from srl.rollout.engine import Engine, Sampling
from srl.rollout.loop import run_trajectories, turn_seed
from srl.rollout.thread import Job
from srl.rollout.worker import RolloutWorker, limits
from srl.tasks.problems import chain_problems
from srl.trajectory import StopReason, Trajectory

TOKENS_PER_TURN = (8, 160)  # least and most


class CountingEngine(Engine):
    """Remembers, for each later turn, how much of its prompt was cached and how much could have been."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.block = self.engine.vllm_config.cache_config.block_size
        self.finished: dict[str, int] = {}  # tokens a trajectory left in the cache
        self.prompts: dict[str, list[int]] = {}
        self.cached = self.reusable = 0

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        self.prompts[request_id] = token_ids
        super().submit(request_id, token_ids, sampling)

    def step(self):
        completions = super().step()
        for done in completions:
            name = done.request_id.rpartition("#")[0]
            if name in self.finished:
                self.cached += done.cached_tokens
                self.reusable += self.finished[name] // self.block * self.block
            # The last token was sampled but never put through the model.
            self.finished[name] = len(self.prompts.pop(done.request_id)) + len(done.token_ids) - 1
        return completions


def two_turns(worker: RolloutWorker, only: int | None = None) -> Protocol:
    """Attempt, instruction, revision with a length limit drawn for each; `only` the first (0) or the second (1) turn."""
    inner = worker.thread.protocol("intrinsic")

    def next_action(trajectory: Trajectory):
        answers = len(trajectory.answers())
        if only is not None and answers > only:
            return Stop(StopReason.ANSWERED)
        action = inner.next_action(trajectory)
        if isinstance(action, Say | Stop):
            return action
        limit = random.Random(f"{trajectory.id} {answers}").randint(*TOKENS_PER_TURN)
        return Generate(action.kind, limit)

    return Protocol(next_action, inner.receive)


def trajectories(worker: RolloutWorker, count: int, name: str) -> list[Trajectory]:
    problems = chain_problems("test", count, 5, 1, 6)
    return [
        Trajectory(f"{name}/{n}", problem.prompt_id, problem.question, problem.gold, worker.chat.opening(problem.question))
        for n, problem in enumerate(problems)
    ]


def sampled(found: list[Trajectory]) -> int:
    return sum(trajectory.sampled_tokens() for trajectory in found)


def through_generate(llm, worker: RolloutWorker, asked: list[Trajectory]) -> int:
    """Tokens of `LLM.generate` for the first turns of these trajectories."""
    from vllm import SamplingParams

    tokens, stop = worker.config.rollout.max_attempt_tokens, worker.chat.stop_ids
    parameters = [
        SamplingParams(max_tokens=tokens, temperature=1.0, seed=turn_seed(t), logprobs=0, stop_token_ids=stop, detokenize=False)
        for t in asked
    ]
    prompts = [{"prompt_token_ids": trajectory.prompt_token_ids} for trajectory in asked]
    return sum(len(output.outputs[0].token_ids) for output in llm.generate(prompts, parameters, use_tqdm=False))


def play(worker: RolloutWorker, protocol: Protocol, asked: list[Trajectory]) -> list[Trajectory]:
    engine, most = worker.thread.loop.engine, limits(worker.config)
    return run_trajectories(engine, protocol, worker.chat, asked, temperature=1.0, limits=most, timeout_s=3600)


def with_barriers(worker: RolloutWorker, asked: list[Trajectory], at_once: int) -> int:
    """Tokens of two turns with a barrier after each, for `at_once` trajectories after the other."""
    for start in range(0, len(asked), at_once):
        for turn in (0, 1):
            play(worker, two_turns(worker, turn), asked[start : start + at_once])
    return sampled(asked)


def ratio(rounds: int, first: Callable[[int], int], second: Callable[[int], int]) -> float:
    """Median over rounds of tokens/s of `first` over `second`; each is called with the round's number and returns tokens."""
    ratios = []
    for number in range(-1, rounds):
        speeds = []
        for side in (first, second) if number % 2 else (second, first):
            started = time.monotonic()
            speeds.append(side(number) / (time.monotonic() - started))
        if number >= 0:  # the one before warms up
            mine, other = speeds if number % 2 else reversed(speeds)
            ratios.append(mine / other)
    return round(statistics.median(ratios), 3)


def random_model(folder: Path) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from srl.tasks.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    shape = Qwen2Config(
        vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(config: Config, count: int, rounds: int) -> dict:
    """All ratios but that of two workers."""
    import torch
    from vllm import LLM

    from srl.rollout.engine import device_options

    def make_engine(config: Config, chat) -> CountingEngine:
        return CountingEngine(config.model.path, config.model, config.rollout, chat.stop_ids)

    worker = RolloutWorker(config, 0, (), make_engine)
    engine, at_once = worker.thread.loop.engine, config.rollout.max_sequences
    if not config.rollout.gpus:
        torch.set_num_threads(config.rollout.threads)  # of this thread; the worker's has its own
    llm = LLM(
        config.model.path,
        dtype=config.model.dtype,
        max_model_len=config.model.max_length,
        max_num_seqs=at_once,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        logprobs_mode="raw_logprobs",
        **device_options(config.model, config.rollout),
    )

    def new(side: str, number: int) -> list[Trajectory]:
        return trajectories(worker, count, f"{side} {number}")

    def continuous(number: int) -> int:
        return sampled(play(worker, two_turns(worker), new("two turns", number)))

    def one_turn(number: int) -> int:
        worker.add([Job(f"{number}", "attempt", new("one turn", number), 1.0)], 0)
        ((job,), _) = worker.collect(3600)
        return sampled(job.trajectories)

    result = {
        "worker_to_generate": ratio(rounds, one_turn, lambda number: through_generate(llm, worker, new("one turn", number))),
    }
    engine.cached = engine.reusable = 0
    continuous(0)
    result["prefix_hits_turn_2"] = round(engine.cached / engine.reusable, 3)
    for name, together in (("continuous_to_barrier", at_once), ("continuous_to_one_barrier", count)):
        result[name] = ratio(rounds, continuous, lambda number, n=together: with_barriers(worker, new("two turns", number), n))
    return result


def two_workers_to_one(config: Config, count: int, rounds: int) -> float | None:
    """Needs a core, or a GPU, for each."""
    import ray

    from srl.driver.session import connect
    from srl.protocols.chat import Chat
    from srl.rollout.pool import RolloutPool

    if len(os.sched_getaffinity(0)) < 2 and not config.rollout.gpus:
        return None
    connect(config)
    if config.rollout.gpus and ray.cluster_resources().get("GPU", 0) < 3 * config.rollout.gpus:
        return None
    pools = [
        RolloutPool(config.model_copy(update={"rollout": config.rollout.model_copy(update={"workers": workers})}))
        for workers in (2, 1)
    ]
    chat = Chat(config.model.path, config.prompts)
    problems = chain_problems("test", 2 * count, 5, 1, 6)

    def run(pool: RolloutPool, number: int) -> int:
        asked = [
            Trajectory(f"{number}/{n}", p.prompt_id, p.question, p.gold, chat.opening(p.question)) for n, p in enumerate(problems)
        ]
        return sampled(pool.generate("attempt", asked, 1.0))

    return ratio(rounds, lambda number: run(pools[0], number), lambda number: run(pools[1], number))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; without it a small one with random weights is made")
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or str(random_model(Path(folder)))
        defaults = ["rollout.max_sequences=64", "rollout.threads=1", "rollout.max_attempt_tokens=64"]
        config = load_config(None, [f"model.path={path}", *defaults, *options.overrides])
        result = measure(config, options.trajectories, options.rounds)
        result["two_workers_to_one"] = two_workers_to_one(config, options.trajectories, options.rounds)
    result |= {"trajectories": options.trajectories, "rounds": options.rounds, "max_sequences": config.rollout.max_sequences}
    result |= {"model": options.model or "random, 3 M", "dtype": config.model.dtype, "cores": len(os.sched_getaffinity(0))}
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
