"""From a checkpoint to a model that other programs load."""

from pathlib import Path

import torch

from srl.config import Config
from srl.learner.checkpoint import read_parts
from srl.learner.lora import add_adapters, published
from srl.learner.model import TokenLogprobs, load_model, save_folder


def export_checkpoint(parts: Path, start: str, config: Config, folder: Path) -> None:
    """Write the policy whose `part-*.safetensors` lie in `parts` as a Hugging Face folder, in the configured type.

    Adapters are merged. `start` is the model that its training started from. Raises FileNotFoundError when parts are missing.
    """
    module, learner = TokenLogprobs(load_model(start, config.model)), config.learner
    if learner.lora_rank:
        add_adapters(module.model, learner.lora_rank, learner.lora_alpha, learner.lora_targets)
    parameters = dict(module.named_parameters())
    states, _, _ = read_parts(parts, 0)
    missing = {name for name, parameter in parameters.items() if parameter.requires_grad}
    with torch.no_grad():
        for name, state in states:
            if "weight" in state:  # frozen models lie beside it
                parameters[name].copy_(state["weight"].view(parameters[name].shape))
                missing.discard(name)
    if missing:
        raise FileNotFoundError(f"{parts}: the part that has {min(missing)} is missing")
    save_folder(module, {name: tensor().clone() for name, _, tensor in published(module)}, start, folder)
