"""Numbers that follow from a configuration: shown by --dry-run before anything is paid for."""

from srl.config import Config
from srl.learner.model import parameter_count
from srl.protocols.chat import model_folder


def derived(config: Config) -> dict[str, str]:
    """Name -> readable value. Memory is what weights, gradients, optimizer and caches take, without activations."""
    rl, sft, stage1, learner = config.rl, config.sft, config.stage1, config.learner
    count = parameter_count(model_folder(config.model.path))
    bytes_each = 4 if config.model.dtype == "float32" else 2
    trajectories = rl.prompts * rl.group
    attempts = stage1.prompts * stage1.attempts
    return {
        "parameters": f"{count:,}",
        "stage 1 samples": f"{attempts:,} attempts, {attempts * stage1.verdicts:,} verdicts, "
        f"at most {attempts * max(stage1.wrong_revisions, stage1.correct_revisions):,} revisions",
        "sft global batch": f"{sft.batch} trajectories over {learner.workers} ranks",
        "sft optimizer steps": f"at most {sft.epochs * -(-3 * stage1.prompts * stage1.per_prompt_and_class // sft.batch):,}",
        "rl global batch": f"{trajectories:,} trajectories a step, {trajectories // rl.mini_batches:,} an optimizer step",
        "rl optimizer steps": f"{rl.steps * rl.mini_batches:,}",
        "rl tokens per step": f"at most {trajectories * config.rollout.max_response_tokens:,} sampled",
        "memory per rollout actor": gibibytes(rollout_bytes(config, count * bytes_each)),
        "memory per learner actor": gibibytes(learner_bytes(config, count, config.objective.needs_reference)),
        **({"memory per critic actor": gibibytes(learner_bytes(config, count, False))} if config.credit.needs_critic else {}),
        "bytes per weight sync": f"{count * bytes_each:,} to each of {config.rollout.workers} rollout actors",
    }


def rollout_bytes(config: Config, weights: int) -> float:
    """CPU: weights and the key-value cache. GPU: vLLM takes its share whatever the model; this is the weights' part."""
    rollout = config.rollout
    return weights / rollout.tensor_parallel if rollout.gpus else weights + rollout.kv_cache_gib * 2**30


def learner_bytes(config: Config, count: int, reference: bool) -> float:
    """Model with AdamW in mixed precision (16 bytes a parameter; 16 in float32 too) by ZeRO stage, and the frozen reference."""
    bytes_each = 4 if config.model.dtype == "float32" else 2
    parts = {"weights": bytes_each, "gradients": bytes_each, "optimizer": 16 - 2 * bytes_each}
    sharded = {0: (), 1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("optimizer", "gradients", "weights")}
    shards = sharded[config.learner.zero_stage]
    policy = sum(size / (config.learner.workers if name in shards else 1) for name, size in parts.items())
    frozen = bytes_each / (config.learner.workers if config.learner.zero_stage == 3 else 1) if reference else 0
    return count * (policy + frozen)


def gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
