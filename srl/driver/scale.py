"""What a configuration takes on paper: memory and seconds from the model's shape and a machine's constants. Pure functions.

Rules of thumb that are all here to be seen: 2 FLOP per parameter and token forward, 4 backward, 2 more when activations are
recomputed; a decode step reads the weights and every cached key and value once.
"""

import itertools
import math
from dataclasses import dataclass

from srl.config import Config
from srl.learner.engine import zero_stage


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only transformer: numbers of its Hugging Face configuration."""

    parameters: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    adapters: int = 0  # parameters of learner.lora_rank's adapters
    experts: int = 0  # parameters of experts, of which a token passes through a share
    share: float = 1.0

    def used(self, tokens: float) -> float:
        """Parameters that so many tokens of a batch pass through, if each takes its experts by chance."""
        return self.parameters - self.experts * (1 - self.share) ** tokens


@dataclass(frozen=True, slots=True)
class Machine:
    """One accelerator (or CPU worker) and its links. `flops`, `bandwidth` are peaks; the shares are what programs reach.

    Bandwidths are in bytes per second, memory in GiB.
    """

    name: str
    memory_gib: float
    flops: float
    bandwidth: float
    train_share: float
    decode_share: float
    step_overhead_s: float
    sequence_overhead_s: float
    store_bandwidth: float
    link_bandwidth: float
    per_node: int


# Peaks from the vendors' data sheets. Shares: training 0.25 of peak (a published trainer reaches 28 % with Qwen3-4B at 16 k
# tokens on 8 H200, 15 % in RL), decoding 0.55 of the bandwidth (a published 512 x 8 k tokens of a 7B model on one H100 take 11
# minutes), broadcast 30 GB/s on H100s (of a published 7B run, all collectives of a sync together take about 0.5 s). None of the
# GPU rows was measured here. "cpu" is one run of configs/tiny.yaml, with one engine, on two free cores.
MACHINES = {
    "a100": Machine("a100", 80, 312e12, 2.0e12, 0.25, 0.55, 6e-3, 15e-6, 2e9, 15e9, 8),
    "h100": Machine("h100", 80, 989e12, 3.35e12, 0.25, 0.55, 5e-3, 10e-6, 2e9, 30e9, 8),
    "h200": Machine("h200", 141, 989e12, 4.8e12, 0.25, 0.55, 5e-3, 10e-6, 2e9, 30e9, 8),
    "cpu": Machine("cpu", 12, 0.4e12, 20e9, 0.47, 0.5, 5e-3, 0.085e-3, 0.1e9, 0.1e9, 1),
}
# Per grading process: verifications of real model outputs; whole numbers that mostly repeat.
GRADES_PER_S = {"file": 220, "chains": 50_000}
REDUCE_BUCKET, LIVE_PARAMETERS = 5e8, 1e9  # elements: DeepSpeed's reduce_bucket_size and stage3_max_live_parameters
FULL_LAYER_ELEMENTS = (10, 2, 4)  # see activation_bytes


@dataclass(frozen=True, slots=True)
class Work:
    """Of one RL step. Tokens are means; `longest` is the token limit of one trajectory."""

    trajectories: int
    sampled_tokens: float
    prompt_tokens: float
    longest: int
    passes: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement and what a step takes with it, in seconds; synchronous, so the parts add up.

    Groups are graded while others are sampled: `reward_s` is what grading takes longer than sampling.
    """

    learners: int
    engines: int
    tensor_parallel: int
    rollout_s: float
    reward_s: float
    learner_s: float
    sync_s: float
    concurrent: int
    learner_gib: float
    rollout_gib: float
    colocated: bool
    critics: int

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.reward_s + self.learner_s + self.sync_s


def activation_bytes(shape: Shape, tokens: int, bytes_each: int, checkpointing: bool) -> float:
    """Kept for the backward pass of `tokens` tokens, attention scores never stored.

    A layer keeps about 10 vectors of the model's width (two of them norms in float32), query, twice key and value, and
    4 of the inner width. With checkpointing only each layer's input stays, and one layer is whole at a time.
    """
    widths, keys, inners = FULL_LAYER_ELEMENTS
    layer = (
        tokens
        * bytes_each
        * (widths * shape.width + (shape.heads + keys * shape.kv_heads) * shape.head_width + inners * shape.inner)
    )
    if checkpointing:
        return shape.layers * tokens * shape.width * bytes_each + layer
    return shape.layers * layer


def logits_bytes(shape: Shape, tokens: int, at_once: int) -> float:
    """float32 logits of the tokens that go through the output layer together, and their gradient."""
    return 2 * 4 * min(tokens * shape.vocabulary, max(at_once, shape.vocabulary))


def state_bytes(config: Config, shape: Shape, ranks: int, reference: bool) -> float:
    """Weights, gradients and AdamW of the policy per rank by ZeRO stage, and the frozen reference, on its device.

    A trained parameter has a gradient and two moments in float32 and, if it is itself in bfloat16, a float32 master: 16 bytes in
    all, in bfloat16 18. With adapters only they have those, and the model without them is the reference. Offloaded to the host is
    whatever is not a weight.
    """
    each, learner = bytes_each(config), config.learner
    trained = shape.adapters or shape.parameters
    weights = each * (shape.parameters + shape.adapters)
    parts = {"weights": weights, "gradients": 4 * trained, "optimizer": (8 if each == 4 else 12) * trained}
    sharded = {0: (), 1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("optimizer", "gradients", "weights")}
    shards = sharded[zero_stage(config)]
    here = {"weights": weights} if learner.offload_optimizer else parts
    policy = sum(size / (ranks if name in shards else 1) for name, size in here.items())
    copies = reference and not shape.adapters
    return policy + copies * each * shape.parameters / (ranks if "weights" in shards else 1)


def bucket_bytes(config: Config, shape: Shape) -> float:
    """What gradients of several ranks are added up in, from ZeRO 1 on. On CPU, memory that is never used is none."""
    elements = REDUCE_BUCKET if config.learner.gpus else min(REDUCE_BUCKET, shape.parameters)
    return elements * bytes_each(config) * (zero_stage(config) > 0)


def kept_bytes(config: Config, shape: Shape, ranks: int, reference: bool) -> float:
    """What a rank holds between steps: under ZeRO 3 the bucket stays with the state."""
    return state_bytes(config, shape, ranks, reference) + bucket_bytes(config, shape) * (zero_stage(config) == 3)


def saved_bytes(config: Config, shape: Shape) -> float:
    """What is whole while a checkpoint is written, beside an engine that is awake: one parameter at a time, in float32."""
    return 4 * shape.vocabulary * shape.width * (zero_stage(config) > 0)


def gathered_bytes(config: Config, shape: Shape) -> float:
    """Most of the weights that a rank has whole at a time because ZeRO 3 fetched them from the others."""
    return min(LIVE_PARAMETERS, shape.parameters) * bytes_each(config) * (zero_stage(config) == 3)


def learner_bytes(config: Config, shape: Shape, ranks: int, reference: bool, at_once: int) -> float:
    """Peak of one rank; `at_once` is how many logits (elements) it computes together."""
    tokens = config.learner.micro_batch_tokens
    return (
        state_bytes(config, shape, ranks, reference)
        + bucket_bytes(config, shape)
        + gathered_bytes(config, shape)
        + activation_bytes(shape, tokens, bytes_each(config), config.learner.gradient_checkpointing)
        + logits_bytes(shape, tokens, at_once)
    )


def cache_bytes_per_token(config: Config, shape: Shape) -> float:
    return 2 * shape.layers * shape.kv_heads * shape.head_width * bytes_each(config)


def bytes_each(config: Config) -> int:
    return 4 if config.model.dtype == "float32" else 2


def rl_work(config: Config, sampled_tokens: float, prompt_tokens: float) -> Work:
    """`passes` is the parameter passes per trained token, in forward passes, of policy and critic one after the other.

    Of an epoch: forward 1, backward 2 (1 through weights that are not trained), recomputation 1, reference 1. Before it: what the
    policy itself gives the tokens, where another may have sampled them, and the critic's values.
    """
    learner, objective, rl = config.learner, config.objective, config.rl
    train = 3 + learner.gradient_checkpointing - (learner.lora_rank > 0)
    own = objective.loss not in ("sft", "dpo", "kto") and (rl.ahead > 0 or config.model.dtype == "bfloat16")
    critic = config.credit.needs_critic
    passes = rl.epochs * (train * (1 + critic) + objective.needs_reference) + own + critic
    return Work(rl.prompts * rl.group, sampled_tokens, prompt_tokens, config.rollout.max_response_tokens, passes)


def concurrent_sequences(config: Config, shape: Shape, machine: Machine, tensor_parallel: int, length: float) -> int:
    """How many sequences of that length an engine holds at once: bounded by the setting and by its cache."""
    if config.rollout.gpus:
        free = machine.memory_gib * 2**30 * config.rollout.gpu_memory * tensor_parallel - shape.parameters * bytes_each(config)
    else:
        free = config.rollout.kv_cache_gib * 2**30
    return max(0, min(config.rollout.max_sequences, int(free / (cache_bytes_per_token(config, shape) * length))))


def decode_step_s(config: Config, shape: Shape, machine: Machine, tensor_parallel: int, sequences: float, length: float) -> float:
    """Seconds for one token of each of `sequences` sequences of mean length `length`."""
    moved = shape.used(sequences) * bytes_each(config) + sequences * length * cache_bytes_per_token(config, shape)
    memory = moved / (machine.bandwidth * machine.decode_share * tensor_parallel)
    compute = 2 * shape.used(1) * sequences / (machine.flops * machine.train_share * 2 * tensor_parallel)
    return machine.step_overhead_s + sequences * machine.sequence_overhead_s + max(memory, compute)


def rollout_s(config: Config, shape: Shape, machine: Machine, work: Work, engines: int, tensor_parallel: int) -> float:
    """Seconds to sample all trajectories: at full batch while there is enough work, and never less than the longest one alone."""
    length = work.prompt_tokens + work.sampled_tokens / 2
    share = work.trajectories / engines
    held = concurrent_sequences(config, shape, machine, tensor_parallel, length)
    if not held:
        return math.inf
    batch = min(held, share)
    throughput = share * work.sampled_tokens / batch * decode_step_s(config, shape, machine, tensor_parallel, batch, length)
    tail = work.longest * decode_step_s(
        config, shape, machine, tensor_parallel, min(batch, max(1, 0.1 * batch)), work.longest / 2
    )
    return max(throughput, tail)


def learner_s(shape: Shape, machine: Machine, work: Work, ranks: int) -> float:
    """Seconds for all passes over all tokens, with the attention scores' FLOP."""
    length = work.prompt_tokens + work.sampled_tokens
    per_token = 2 * shape.used(1) + 2 * shape.layers * shape.heads * shape.head_width * length
    return work.passes * per_token * work.trajectories * length / (ranks * machine.flops * machine.train_share)


def sync_s(transfer: str, machine: Machine, weights: float) -> float:
    """Seconds until all engines hold new weights of so many bytes."""
    if transfer == "store":  # gathered by one rank and put once; each engine pulls its own copy, all at the same time
        return 2 * weights / machine.store_bandwidth
    if transfer == "broadcast":  # all engines receive at once, and the next bucket is gathered meanwhile
        return weights / machine.link_bandwidth
    # Gathered by every rank over the links, then read and written once in the memory that both share.
    return weights / machine.link_bandwidth + 2 * weights / (machine.bandwidth * machine.decode_share)


def plan_placement(config: Config, shape: Shape, machine: Machine, work: Work, devices: int, at_once: int) -> Plan | None:
    """The fastest split of `devices` into learner ranks and engines whose memory fits; None when none does."""
    if config.rollout.colocate:
        ranks = devices // (1 + config.credit.needs_critic)
        return evaluate_split(config, shape, machine, work, (ranks, ranks, 1), at_once) if ranks else None
    best = None
    for tensor_parallel in (1, 2, 4, 8):
        if tensor_parallel > 1 and tensor_parallel > machine.per_node:
            break
        for learners in range(1, devices):
            # A critic is a group of its own, of the same size.
            engines = (devices - learners * (1 + config.credit.needs_critic)) // tensor_parallel
            if engines < 1:
                break
            found = evaluate_split(config, shape, machine, work, (learners, engines, tensor_parallel), at_once)
            if found and (best is None or found.step_s < best.step_s):
                best = found
        if best and best.tensor_parallel < tensor_parallel:
            break  # more parallelism inside an engine did not help
    return best


def evaluate_split(
    config: Config, shape: Shape, machine: Machine, work: Work, split: tuple[int, int, int], at_once: int
) -> Plan | None:
    learners, engines, tensor_parallel = split
    learner_gib = learner_bytes(config, shape, learners, config.objective.needs_reference, at_once) / 2**30
    sampling = rollout_s(config, shape, machine, work, engines, tensor_parallel)
    if learner_gib > 0.95 * machine.memory_gib or math.isinf(sampling):
        return None
    if config.rollout.colocate:
        beside = kept_bytes(config, shape, learners, config.objective.needs_reference) + saved_bytes(config, shape)
        if beside / 2**30 > (0.95 - config.rollout.gpu_memory) * machine.memory_gib:
            return None
    length = work.prompt_tokens + work.sampled_tokens
    weights = shape.parameters * bytes_each(config)
    held = concurrent_sequences(config, shape, machine, tensor_parallel, length)
    return Plan(
        learners,
        engines,
        tensor_parallel,
        sampling,
        max(0.0, work.trajectories * 2 / (config.reward.workers * GRADES_PER_S[config.task.name]) - sampling),
        learner_s(shape, machine, work, learners),
        sync_s(config.transfer, machine, weights),
        held,
        learner_gib,
        (weights / tensor_parallel + held * length * cache_bytes_per_token(config, shape) / tensor_parallel) / 2**30,
        config.rollout.colocate,
        learners if config.credit.needs_critic else 0,
    )


def scaling(
    config: Config, shape: Shape, machine: Machine, work: Work, counts: list[int], at_once: int
) -> list[tuple[int, Plan | None]]:
    """The best plan for each number of devices, the work of a step unchanged."""
    return [(count, plan_placement(config, shape, machine, work, count, at_once)) for count in counts]


def stops_at(plans: list[tuple[int, Plan | None]], gain: float = 1.2) -> int | None:
    """The first number of devices after which the next step of the list brings less than `gain`; None if there is none."""
    fitting = [(count, plan) for count, plan in plans if plan]
    for (count, plan), (_, following) in itertools.pairwise(fitting):
        if plan.step_s / following.step_s < gain:
            return count
    return None
