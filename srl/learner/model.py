"""A causal language model that returns what training needs: log-probabilities (or values) of the trained tokens."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights

from srl.config import Config, ConfigError, ModelConfig
from srl.learner.batch import Batch
from srl.learner.packing import ATTENTION
from srl.protocols.chat import first_line, load_tokenizer, model_folder

# Logits, in elements, that may exist at one time: 1 GiB in float32.
LOGITS_AT_ONCE = 2**28
# Families whose packed log-probabilities are those of their own forward pass (tests/test_families.py). Others scale or cap their
# logits, add to attention's scores, or carry a state from token to token, which here would run from one sequence into the next.
FAMILIES = {
    "ernie4_5", "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox", "helium", "llama", "mistral", "mixtral", "olmo2", "opt",
    "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
}  # fmt: skip
VALUE_HEAD = "value_head.safetensors"
# What makes weights of one model computable as another: engines keep the configuration that they were started with.
ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
)  # fmt: skip


class TokenLogprobs(nn.Module):
    """Wraps a Hugging Face model. Only positions that are trained go through the output layer.

    `most` gives the largest of all ranks' numbers, where ranks must call the output layer equally often: it is sharded.
    """

    def __init__(self, model: nn.Module, most: Callable[[int], int] = int):
        super().__init__()
        self.model, self.most = model, most

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of each trained token, [trained tokens], nats."""
        before = hidden_before(self.model, batch)
        targets = batch.ids[batch.trained]
        head = self.model.get_output_embeddings()
        rows = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        count = self.most(max(1, -(-len(targets) // rows)))
        if count == 1:
            return token_logprobs(head, before, targets)
        # Logits of one part at a time exist; the backward pass computes them again. Parts may be empty.
        parts = [
            checkpoint(token_logprobs, head, *part, use_reentrant=False)
            for part in zip(before.tensor_split(count), targets.tensor_split(count), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)


class TokenValues(nn.Module):
    """A critic: the Hugging Face model with a scalar head, which starts at zero. Trained like the policy."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, dtype=model.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The value of the state before each trained token, and zeros in the entropy's place, [trained tokens]."""
        values_t = self.value_head(hidden_before(self.model, batch)).squeeze(-1).float()
        return values_t, torch.zeros_like(values_t)


def hidden_before(model: nn.Module, batch: Batch) -> torch.Tensor:
    """[trained tokens, width]: the last hidden state of the position before each trained token, which predicts it."""
    hidden = model.base_model(
        input_ids=batch.ids, position_ids=batch.positions, use_cache=False, lengths=batch.lengths
    ).last_hidden_state
    return hidden[:, :-1][batch.trained[:, 1:]]


def token_logprobs(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [n, width], targets [n] -> log-probability of each target, and entropy without gradient, [n]."""
    logits = head(hidden).float()
    normaliser = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    with torch.no_grad():
        entropy = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
    return chosen, entropy


def load_critic(path: str, config: ModelConfig, filled: bool = True) -> TokenValues:
    """The model at `path` with the value head saved beside it, or a new one; see `load_model`."""
    critic = TokenValues(load_model(path, config, filled))
    if (head := Path(path) / VALUE_HEAD).exists():
        critic.load_state_dict(load_file(head), strict=False)
    return critic


def check_family(path: str, setting: str) -> None:
    """Raises ConfigError, naming the setting, for a model that can be sampled from and not be trained."""
    kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    if kind not in FAMILIES:
        raise ConfigError(f"{setting}={path}: a {kind} model cannot be trained here, only {', '.join(sorted(FAMILIES))}")


def load_model(path: str, config: ModelConfig, filled: bool = True) -> nn.Module:
    """For training, without dropout. If not `filled`, the weights are memory that nothing was written to and that costs nothing.

    Raises ConfigError with the folder and what is wrong with it.
    """
    kind = {"dtype": getattr(torch, config.dtype), "attn_implementation": ATTENTION, "trust_remote_code": False}
    try:
        check_family(path, "model.path")
        if filled:
            # Safetensors hold no code; pickled weights and modules beside a model do.
            model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **kind)
        else:
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False), **kind)
            model.tie_weights()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"model.path={path}: no model can be loaded from it: {first_line(error)}") from None

    drop_nothing(model)
    return model


def drop_nothing(model: nn.Module) -> None:
    """Turn dropout off: with it the policy that is trained is not the one that sampled, and ratios do not begin at 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def as_saved(model: nn.Module, tensors: Sequence[tuple[str, Callable[[], torch.Tensor]]]) -> list[tuple[str, torch.Tensor]]:
    """Weights of a `TokenLogprobs` of that model as its saved folder has them, which is what engines read.

    In memory some families have other names, and all experts of a layer in one tensor. Of these alone copies are made.
    """
    return list(revert_weight_conversion(model, {name.removeprefix("model."): tensor() for name, tensor in tensors}).items())


def save_folder(module: nn.Module, state: dict[str, torch.Tensor], tokenizer: str, folder: Path) -> None:
    """Write a Hugging Face folder with these whole tensors of `module` (named as in it); it appears only when whole.

    A critic's head is the file value_head.safetensors beside the model.
    """
    partial = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    weights = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    module.model.save_pretrained(partial, state_dict=weights)
    if head := {name: tensor for name, tensor in state.items() if name.startswith("value_head.")}:
        save_file(head, partial / VALUE_HEAD)
    load_tokenizer(tokenizer).save_pretrained(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def parameter_count(path: str, setting: str) -> int:
    """Parameters of the model at `path`, from its configuration alone. Raises ConfigError that names the setting for none."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{setting}={path}: no model configuration can be loaded from it: {first_line(error)}") from None
    return sum(parameter.numel() for parameter in model.parameters())


def check_start_model(path: str, base: str, setting: str) -> None:
    """Raises ConfigError, naming both sides, for a model that the engines and learners of `base` cannot go on from."""
    check_folder(path, setting)
    own, theirs = (AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config() for folder in (path, base))
    sides = {key: (getattr(own, key, None), getattr(theirs, key, None)) for key in ARCHITECTURE}
    if different := [f"{key} {here}, there {there}" for key, (here, there) in sides.items() if here != there]:
        raise ConfigError(f"{setting}={path}: not a model of the shape of model.path={base}: {'; '.join(different)}")
    check_tokens(path, base, setting)


def check_tokens(path: str, base: str, setting: str) -> None:
    """Raises ConfigError, naming both sides, for a model whose tokens have other ids than those of `base`."""
    own, theirs = load_tokenizer(path, setting).get_vocab(), load_tokenizer(base).get_vocab()
    for token in sorted(own.keys() | theirs.keys()):
        if own.get(token) != theirs.get(token):
            sides = f"{token!r} is token {own.get(token)}, there {theirs.get(token)}"
            raise ConfigError(f"{setting}={path}: its tokenizer is not that of model.path={base}: {sides}")


def check_folder(path: str, setting: str) -> int:
    """Parameters of the model at `path`. Raises ConfigError, naming the setting, for one that is missing or broken."""
    if (Path(path) / "adapter_config.json").is_file():
        raise ConfigError(f"{setting}={path}: a LoRA adapter, not a whole model: merge it into the model it is for")
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{setting}={path}: no model in this folder (no config.json)")
    load_tokenizer(path, setting)
    count = parameter_count(path, setting)
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"{setting}={path}: {file.name} is broken: {first_line(error)}") from None
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
        raise ConfigError(f"{setting}={path}: no weights (*.safetensors) in it")
    return count


def check_model(config: Config, setting: str = "model.path") -> None:
    """Refuse a missing or broken model, by the setting that named it, and a machine too small for it, before anything starts."""
    count = check_folder(model_folder(config.model.path), setting)
    rollout = config.rollout
    _, cluster = config.run.cluster
    if rollout.gpus or cluster:
        return
    needed = rollout.workers * (rollout.kv_cache_gib * 2**30 + count * (4 if config.model.dtype == "float32" else 2))
    if needed > (free := psutil.virtual_memory().available):
        raise ConfigError(
            f"rollout.kv_cache_gib={rollout.kv_cache_gib:g} x {rollout.workers} workers and weights need "
            f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory are free"
        )
