"""Numbers that follow from a configuration, shown before anything is paid for: by --dry-run and by `plan`."""

from collections.abc import Iterable, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from srl.config import Config, ConfigError
from srl.driver.scale import (
    MACHINES,
    Machine,
    Plan,
    Shape,
    Work,
    bytes_each,
    cache_bytes_per_token,
    kept_bytes,
    learner_bytes,
    plan_placement,
    rl_work,
    scaling,
    stops_at,
)
from srl.learner.lora import add_adapters
from srl.learner.model import LOGITS_AT_ONCE
from srl.protocols.chat import first_line, model_folder

WAYS = {
    "store": "the object store",
    "ipc": "opening the learner's memory (ipc)",
    "broadcast": "broadcast from the first learner",
}
INNER = ("intermediate_size", "ffn_dim", "n_inner")  # of the feed-forward layers; OPT and GPT-2 have names of their own
EXPERTS = ("num_local_experts", "num_experts")
COUNTS = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def derived(config: Config) -> dict[str, str]:
    """Name -> readable value."""
    rl, sft, stage1, learner = config.rl, config.sft, config.stage1, config.learner
    shape = model_shape(config)
    weights = shape.parameters * bytes_each(config)
    trajectories = rl.prompts * rl.group
    attempts = stage1.prompts * stage1.attempts
    return {
        "parameters": parameters(shape),
        "stage 1 samples": f"{attempts:,} attempts, {attempts * stage1.verdicts:,} verdicts, "
        f"at most {attempts * max(stage1.wrong_revisions, stage1.correct_revisions):,} revisions",
        "sft global batch": f"{sft.batch} trajectories over {learner.workers} ranks",
        "sft optimizer steps": f"at most {sft.epochs * -(-3 * stage1.prompts * stage1.per_prompt_and_class // sft.batch):,}",
        "rl global batch": f"{trajectories:,} trajectories a step, {trajectories // rl.mini_batches:,} an optimizer step",
        "rl optimizer steps": f"{rl.steps * rl.mini_batches:,}",
        "rl tokens per step": f"at most {trajectories * config.rollout.max_response_tokens:,} sampled",
        "memory per rollout actor": gibibytes(rollout_bytes(config, weights)),
        "memory per learner actor": learner_memory(config, shape, config.objective.needs_reference),
        **({"memory per critic actor": learner_memory(config, shape, False)} if config.credit.needs_critic else {}),
        **shared_memory(config, shape),
        "bytes per weight sync": f"{weights:,} to each of {config.rollout.workers} rollout actors, by {WAYS[config.transfer]}",
    }


def shared_memory(config: Config, shape: Shape) -> dict[str, str]:
    """Of a GPU that a learner and an engine share, while the engine is awake."""
    if not (config.rollout.colocate and config.rollout.gpus):
        return {}
    state = gibibytes(kept_bytes(config, shape, config.learner.workers, config.objective.needs_reference))
    return {"memory per shared GPU, engine awake": f"{state} of the learner beside {config.rollout.gpu_memory:.0%} for vLLM"}


def rollout_bytes(config: Config, weights: int) -> float:
    """CPU: weights and the key-value cache. GPU: vLLM takes its share whatever the model; this is the weights' part."""
    rollout = config.rollout
    return weights / rollout.tensor_parallel if rollout.gpus else weights + rollout.kv_cache_gib * 2**30


def learner_memory(config: Config, shape: Shape, reference: bool) -> str:
    size = learner_bytes(config, shape, config.learner.workers, reference, LOGITS_AT_ONCE)
    return f"{gibibytes(size)}, activations of {config.learner.micro_batch_tokens:,} tokens included"


def model_shape(config: Config) -> Shape:
    """From the model's configuration alone. Raises ConfigError if there is none, or adapters that it cannot take."""
    path, learner = model_folder(config.model.path), config.learner
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path={path}: no model configuration can be loaded from it: {first_line(error)}") from None
    whole, adapters = count(model.parameters()), 0
    experts = count(parameter for name, parameter in model.named_parameters() if ".experts." in name)
    if learner.lora_rank:
        try:
            add_adapters(model, learner.lora_rank, learner.lora_alpha, learner.lora_targets)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        adapters = count(parameter for parameter in model.parameters() if parameter.requires_grad)
    text = found.get_text_config()
    heads, inner = text.num_attention_heads, first_of(INNER, text) or 4 * text.hidden_size
    return Shape(
        parameters=whole,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
        inner=text.num_experts_per_tok * (getattr(text, "moe_intermediate_size", None) or inner) if experts else inner,
        vocabulary=text.vocab_size,
        adapters=adapters,
        experts=experts,
        share=text.num_experts_per_tok / first_of(EXPERTS, text) if experts else 1.0,
    )


def first_of(names: Sequence[str], found: PretrainedConfig) -> int | None:
    return next((value for name in names if (value := getattr(found, name, None))), None)


def parameters(shape: Shape) -> str:
    return f"{shape.parameters:,}" + (f" ({shape.used(1):,.0f} for a token)" if shape.experts else "")


def count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def placed_on(config: Config, gpu: str) -> Config:
    """That configuration with its actors on such machines, whatever it was written for."""
    gpus = int(gpu != "cpu")
    parts = {name: getattr(config, name) for name in ("learner", "rollout")}
    return config.model_copy(
        update={name: part.model_copy(update={"gpus": max(gpus, part.gpus * gpus)}) for name, part in parts.items()}
    )


def placement_report(config: Config, gpu: str, devices: int, tokens: float, prompt: float) -> str:
    """What to set for so many devices, what a step takes, how it scales, and where that ends.

    Raises ConfigError with the sizes and what changes them where it does not fit.
    """
    config = placed_on(config, gpu)
    machine, shape = MACHINES[gpu], model_shape(config)
    work = rl_work(config, tokens, prompt)
    plan = plan_placement(config, shape, machine, work, devices, LOGITS_AT_ONCE)
    lines = [
        f"{parameters(shape)} parameters, {cache_bytes_per_token(config, shape):,.0f} bytes of cache per token, "
        f"{work.trajectories:,} trajectories a step of {prompt:g} + {tokens:g} tokens ({work.longest:,} at most), "
        f"{devices} x {machine.name}",
    ]
    if plan is None:
        raise ConfigError(f"{lines[0]}: {no_room(config, shape, machine, devices)}")
    lines += ["", *plan_lines(plan, work, machine), "", *scaling_lines(config, shape, machine, work)]
    return "\n".join(lines)


def no_room(config: Config, shape: Shape, machine: Machine, devices: int) -> str:
    needed = learner_bytes(config, shape, max(1, devices - 1), config.objective.needs_reference, LOGITS_AT_ONCE)
    if config.rollout.colocate:
        state = kept_bytes(config, shape, devices, config.objective.needs_reference)
        return (
            f"does not fit: beside vLLM's {config.rollout.gpu_memory:.0%} of {machine.memory_gib:g} GiB a learner rank keeps "
            f"{gibibytes(state)} with {devices} ranks; settings that change it: rollout.gpu_memory, learner.zero_stage=3, "
            "learner.offload_optimizer=true, learner.micro_batch_tokens"
        )
    return (
        f"does not fit: a learner rank takes {gibibytes(needed)} of {machine.memory_gib:g} GiB with {max(1, devices - 1)} ranks, "
        "and an engine needs a device of its own; settings that change it: learner.zero_stage=3, "
        "learner.gradient_checkpointing=true, learner.micro_batch_tokens, learner.offload_optimizer=true"
    )


def plan_lines(plan: Plan, work: Work, machine: Machine) -> list[str]:
    per_second = work.trajectories * work.sampled_tokens / plan.step_s
    apart = [plan.learners, plan.critics] + [plan.engines * plan.tensor_parallel] * (not plan.colocated)
    nodes = sum(-(-devices // machine.per_node) for devices in apart)
    how = "an engine beside every learner" if plan.colocated else "when learners and engines share none"
    where = f"nodes of {machine.per_node}, {how}{', nor these and the critic' if plan.critics else ''}: {nodes}"
    on_gpus = machine is not MACHINES["cpu"]
    return [
        f"set: learner.workers={plan.learners} rollout.workers={plan.engines} rollout.tensor_parallel={plan.tensor_parallel} "
        f"learner.gpus={int(on_gpus)} rollout.gpus={plan.tensor_parallel if on_gpus else 0}",
        where,
        f"memory: learner rank {plan.learner_gib:.1f} GiB; engine {plan.rollout_gib:.1f} GiB per device with its "
        f"{plan.concurrent:,} concurrent sequences",
        f"step: {plan.step_s:.1f} s = rollout {plan.rollout_s:.1f} + reward {plan.reward_s:.1f} + learner {plan.learner_s:.1f} "
        f"+ weights {plan.sync_s:.1f}",
        f"sampled tokens per second, over the whole step: {per_second:,.0f}",
    ]


def scaling_lines(config: Config, shape: Shape, machine: Machine, work: Work) -> list[str]:
    plans = scaling(config, shape, machine, work, COUNTS, LOGITS_AT_ONCE)
    rows = [f"{'devices':>8} {'learners':>9} {'engines':>8} {'TP':>3} {'step s':>8} {'rollout':>8} {'learner':>8} {'rest':>6}"]
    for count, plan in plans:
        if plan is None:
            rows.append(f"{count:>8} does not fit")
            continue
        rest = plan.reward_s + plan.sync_s
        placed = f"{count:>8} {plan.learners:>9} {plan.engines:>8} {plan.tensor_parallel:>3}"
        rows.append(f"{placed} {plan.step_s:>8.1f} {plan.rollout_s:>8.1f} {plan.learner_s:>8.1f} {rest:>6.1f}")
    if (last := stops_at(plans)) is not None:
        plan = dict(plans)[last]
        parts = {"rollout": plan.rollout_s, "grading": plan.reward_s, "learner": plan.learner_s, "weights": plan.sync_s}
        rows.append(
            f"with this batch, twice {last} devices are less than 1.2 times as fast; the largest part is "
            f"{max(parts, key=parts.get)}. Larger steps (rl.prompts) use more devices; more devices alone do not help"
        )
    return rows


def gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
