"""A causal language model that returns what training needs: log-probabilities of the trained tokens."""

from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from srl.config import Config, ConfigError, ModelConfig
from srl.protocols.chat import first_line, load_tokenizer, model_folder


class TokenLogprobs(nn.Module):
    """Wraps a Hugging Face model. Only positions that are trained go through the output layer."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, trained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids, trained: [sequence, token], padded on the right -> log-probability and entropy, each [trained tokens], nats.

        Right padding and the causal mask keep padding out of sight, so no attention mask is needed.
        """
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # The token at position t is predicted from position t - 1.
        logits = self.model.get_output_embeddings()(hidden[:, :-1][trained[:, 1:]]).float()
        logprobs_v = logits.log_softmax(-1)
        chosen = logprobs_v.gather(-1, ids[:, 1:][trained[:, 1:]].unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            entropy = -(logprobs_v.exp() * logprobs_v).sum(-1)
        return chosen, entropy


def load_model(path: str, config: ModelConfig) -> nn.Module:
    """Raises ConfigError with the folder and what is wrong with it."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"model.path={path}: no model can be loaded from it: {first_line(error)}") from None


def parameter_count(path: str) -> int:
    """Parameters of the model at `path`, from its configuration alone. Raises ConfigError if there is none."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path={path}: no model configuration can be loaded from it: {first_line(error)}") from None
    return sum(parameter.numel() for parameter in model.parameters())


def check_model(config: Config) -> None:
    """Refuse a missing or broken model and a machine too small for it, before anything starts."""
    path = model_folder(config.model.path)
    load_tokenizer(path)
    count = parameter_count(path)
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"model.path={path}: {file.name} is broken: {first_line(error)}") from None
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
        raise ConfigError(f"model.path={path}: no weights (*.safetensors) in it")
    rollout = config.rollout
    if rollout.gpus or config.run.ray_address:
        return
    needed = rollout.workers * (rollout.kv_cache_gib * 2**30 + count * (4 if config.model.dtype == "float32" else 2))
    if needed > (free := psutil.virtual_memory().available):
        raise ConfigError(
            f"rollout.kv_cache_gib={rollout.kv_cache_gib:g} x {rollout.workers} workers and weights need "
            f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory are free"
        )
