"""The rollout engine against plain vLLM, in one process, on one model.

    python -m benchmarks.rollout [--model FOLDER] [--trajectories 128] [--rounds 5] [section.key=value ...]

Prints JSON. Every ratio is the median over rounds that alternate between the two sides, so that what else the machine does
hits both. `range` has the lowest and the highest, `tokens_s` the median tokens/s of both sides, `by_cpu` the median ratio of
tokens per second of this process's CPU time, which on CPU is what the wall clock shows when nothing else runs.

worker_to_generate         tokens/s of single-turn trajectories through the worker over those of `LLM.generate`, same seeds, same
                           settings of engine and requests
outside_vllm               share of the loop's CPU time in such trajectories that is not spent in vLLM's own calls
continuous_to_barrier      tokens/s of two-turn trajectories of mixed length over the same with a barrier after each turn, where
                           as many trajectories are begun together as the engine runs at once
continuous_to_one_barrier  the same against a single barrier between the first and the second turns of all of them
prefix_hits_turn_2         tokens found in the prefix cache over the whole blocks that turn 1 left there
two_workers_to_one         tokens/s of two worker actors over one; null where there is one core (or GPU) only

Without --model a Qwen2 of random parameters is made (--width, --layers; 3 M by default), whose answers end at random or at their
length limit.
"""

import argparse
import functools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray import cloudpickle

from benchmarks.refusal import refusing
from srl.commands.numbers import at_least
from srl.config import Config, load_config
from srl.learner.model import check_folder
from srl.protocols.action import Generate, Protocol, Say, Stop
from srl.protocols.chat import Chat, model_folder
from srl.rollout.engine import Engine, Sampling
from srl.rollout.loop import limits, run_trajectories, turn_seed
from srl.rollout.thread import Job
from srl.rollout.worker import RolloutWorker
from srl.tasks.problems import chain_problems
from srl.trajectory import StopReason, Trajectory

TOKENS_PER_TURN = (8, 160)  # least and most


class CountingEngine(Engine):
    """Remembers, for each later turn, how much of its prompt was cached and how much could have been; and vLLM's CPU seconds."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.block = self.engine.vllm_config.cache_config.block_size
        self.finished: dict[str, int] = {}  # tokens a trajectory left in the cache
        self.prompts: dict[str, list[int]] = {}
        self.cached = self.reusable = 0
        self.vllm_s = 0.0
        self.engine.step, self.engine.add_request = self.timed(self.engine.step), self.timed(self.engine.add_request)

    def timed(self, call: Callable) -> Callable:
        def timed(*arguments):
            started = time.thread_time()
            result = call(*arguments)
            self.vllm_s += time.thread_time() - started
            return result

        return timed

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


def trajectories(chat: Chat, count: int, name: str) -> list[Trajectory]:
    problems = chain_problems("test", count, 5, 1, 6)
    return [
        Trajectory(f"{name}/{n}", problem.prompt_id, problem.question, problem.gold, chat.opening(problem.question))
        for n, problem in enumerate(problems)
    ]


def sampled(found: list[Trajectory]) -> int:
    return sum(trajectory.sampled_tokens() for trajectory in found)


def through_generate(llm, worker: RolloutWorker, asked: list[Trajectory]) -> int:
    """Tokens of `LLM.generate` for the first turns of these trajectories."""
    from vllm import SamplingParams

    same = {"temperature": 1.0, "logprobs": 0, "flat_logprobs": True, "detokenize": False}
    same |= {"max_tokens": worker.config.rollout.max_attempt_tokens, "stop_token_ids": worker.chat.stop_ids}
    parameters = [SamplingParams(seed=turn_seed(trajectory), **same) for trajectory in asked]
    prompts = [{"prompt_token_ids": trajectory.prompt_token_ids} for trajectory in asked]
    return sum(len(output.outputs[0].token_ids) for output in llm.generate(prompts, parameters, use_tqdm=False))


def play(worker: RolloutWorker, protocol: Protocol, asked: list[Trajectory]) -> list[Trajectory]:
    engine, most = worker.thread.loop.engine, limits(worker.config)
    return run_trajectories(engine, protocol, worker.chat, asked, temperature=1.0, limits=most, timeout_s=3600)


def outside_vllm(worker: RolloutWorker, asked: list[Trajectory]) -> float:
    engine, started = worker.thread.loop.engine, time.thread_time()
    engine.vllm_s = 0.0
    play(worker, worker.thread.protocol("attempt"), asked)
    return 1 - engine.vllm_s / (time.thread_time() - started)


def with_barriers(worker: RolloutWorker, asked: list[Trajectory], at_once: int) -> int:
    """Tokens of two turns with a barrier after each, for `at_once` trajectories after the other."""
    for start in range(0, len(asked), at_once):
        for turn in (0, 1):
            play(worker, two_turns(worker, turn), asked[start : start + at_once])
    return sampled(asked)


@dataclass(frozen=True)
class Ratio:
    """Tokens/s of one side over those of the other, round by round; also per second of this process's CPU time."""

    rounds: list[float]
    by_cpu: list[float]
    tokens_s: tuple[float, float]


Side = Callable[[list[Trajectory]], int]  # plays what it is given and returns how many tokens were sampled


def ratio(rounds: int, asked: Callable[[int], list[Trajectory]], first: Side, second: Side) -> Ratio:
    """Both sides in turn on what `asked` gives for the round's number; a round before the others warms up."""
    sides, speeds, by_cpu = (first, second), ([], []), ([], [])
    for number in range(-1, rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            given = asked(number)
            started, cpu = time.monotonic(), time.process_time()
            tokens = sides[side](given)
            by_cpu[side].append(tokens / (time.process_time() - cpu))
            speeds[side].append(tokens / (time.monotonic() - started))
    wall, own = ([mine / other for mine, other in zip(*both, strict=True)][1:] for both in (speeds, by_cpu))
    return Ratio(wall, own, tuple(statistics.median(side[1:]) for side in speeds))


def random_model(folder: Path, width: int, layers: int) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from srl.tasks.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    shape = Qwen2Config(
        vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(config: Config, count: int, rounds: int) -> Iterator[tuple[str, Ratio | float | None]]:
    """What the module's docstring names, one after the other."""
    import torch
    from vllm import LLM

    from srl.rollout.engine import device_options

    def make_engine(config: Config, chat) -> CountingEngine:
        return CountingEngine(config.model.path, config.model, config.rollout, chat.stop_ids)

    worker = RolloutWorker(config, 0, cloudpickle.dumps(()), make_engine)
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

    def asked(side: str) -> Callable[[int], list[Trajectory]]:
        return lambda number: trajectories(worker.chat, count, f"{side} {number}")

    def one_turn(given: list[Trajectory]) -> int:
        worker.add([Job("one turn", "attempt", given, 1.0)], 0)
        ((job,), _) = worker.collect(3600)
        return sampled(job.trajectories)

    def continuous(given: list[Trajectory]) -> int:
        return sampled(play(worker, two_turns(worker), given))

    yield "worker_to_generate", ratio(rounds, asked("one turn"), one_turn, functools.partial(through_generate, llm, worker))
    yield "outside_vllm", outside_vllm(worker, asked("one turn")(0))
    engine.cached = engine.reusable = 0
    continuous(asked("two turns")(0))
    yield "prefix_hits_turn_2", engine.cached / engine.reusable
    for name, together in (("continuous_to_barrier", at_once), ("continuous_to_one_barrier", count)):
        with_barrier = functools.partial(with_barriers, worker, at_once=together)
        yield name, ratio(rounds, asked("two turns"), continuous, with_barrier)
    yield "two_workers_to_one", two_workers_to_one(config, count, rounds)


def two_workers_to_one(config: Config, count: int, rounds: int) -> Ratio | None:
    """Needs a core, or a GPU, for each."""
    import ray

    from srl.driver.cluster import connect
    from srl.rollout.pool import RolloutPool

    if len(os.sched_getaffinity(0)) < 2 and not config.rollout.gpus:
        return None
    connect(config)
    if config.rollout.gpus and ray.cluster_resources().get("GPU", 0) < 3 * config.rollout.gpus:
        return None
    two, one = (
        RolloutPool(config.model_copy(update={"rollout": config.rollout.model_copy(update={"workers": workers})}))
        for workers in (2, 1)
    )
    chat = Chat(config.model.path, config.prompts)
    return ratio(
        rounds,
        lambda number: trajectories(chat, 2 * count, f"workers {number}"),
        lambda given: sampled(two.generate("attempt", given, 1.0)),
        lambda given: sampled(one.generate("attempt", given, 1.0)),
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; without it a small one with random weights is made")
    parser.add_argument("--width", type=at_least(1), default=256, help="of that model")
    parser.add_argument("--layers", type=at_least(1), default=4, help="of that model")
    parser.add_argument("--trajectories", type=at_least(1), default=128)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    result: dict = {"range": {}, "by_cpu": {}, "tokens_s": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or str(random_model(Path(folder), options.width, options.layers))
        defaults = ["rollout.max_sequences=16", "rollout.threads=1", "rollout.max_attempt_tokens=64"]
        with refusing(parser):
            config = load_config(None, [f"model.path={path}", *defaults, *options.overrides])
            check_folder(model_folder(path), "--model")
        for name, value in measure(config, options.trajectories, options.rounds):
            if isinstance(value, Ratio):
                result["range"][name] = [round(min(value.rounds), 3), round(max(value.rounds), 3)]
                if name != "two_workers_to_one":  # theirs are other processes
                    result["by_cpu"][name] = round(statistics.median(value.by_cpu), 3)
                result["tokens_s"][name] = [round(speed) for speed in value.tokens_s]
                value = statistics.median(value.rounds)
            result[name] = value and round(value, 3)
            print(name, result[name], *(result[also].get(name) for also in ("range", "by_cpu")), file=sys.stderr, flush=True)
        size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    result |= {"trajectories": options.trajectories, "rounds": options.rounds, "max_sequences": config.rollout.max_sequences}
    result |= {"model": options.model or "random", "model_mb": round(size / 1e6, 1), "dtype": config.model.dtype}
    result |= {"threads": config.rollout.threads, "cores": len(os.sched_getaffinity(0))}
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
