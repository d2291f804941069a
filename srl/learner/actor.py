"""The learner actor: the one file that knows DeepSpeed."""

import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import ray
import torch

from srl.config import Config
from srl.learner.batch import Example, collate
from srl.learner.losses import Loss
from srl.learner.model import TokenLogprobs, TokenValues, load_model
from srl.protocols.chat import load_tokenizer
from srl.weights.bundle import Bundle, put_bundle

Metrics = dict[str, float]


class Learner:
    """One data-parallel rank. All ranks get the same calls in the same order; rank r works on its own micro-batches."""

    def __init__(self, config: Config, rank: int, world: int):
        self.config, self.rank, self.world = config, rank, world
        self.frozen: dict[str, TokenLogprobs] = {}

    def __repr__(self) -> str:
        return f"Learner(rank={self.rank})"

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(
        self,
        path: str,
        reference: str | None,
        critic: bool,
        address: tuple[str, int],
        learning_rate: float,
        weight_decay: float,
        clip: float,
    ) -> None:
        """Load the model at `path` (a critic: with a value head) and a frozen copy of that at `reference`; join the ranks."""
        join_ranks(address, self.rank, self.world, self.config.learner.gpus > 0)
        import deepspeed

        if not self.config.learner.gpus:
            torch.set_num_threads(self.config.learner.threads)
        torch.manual_seed(self.config.run.seed)
        module = (TokenValues if critic else TokenLogprobs)(load_model(path, self.config.model))
        if self.config.learner.gradient_checkpointing:
            module.model.gradient_checkpointing_enable()
        self.pad_id = load_tokenizer(path).pad_token_id or 0
        self.path = path
        parameters = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.95))
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=None if self.config.learner.offload_optimizer else parameters,
            config=deepspeed_config(self.config, learning_rate, weight_decay, clip),
        )
        self.device = self.engine.device
        if reference is not None:
            self.frozen["reference"] = self._frozen(reference)

    def _frozen(self, path: str) -> torch.nn.Module:
        """A model for log-probabilities only; under ZeRO 3 it is sharded like the policy."""
        import deepspeed

        module = TokenLogprobs(load_model(path, self.config.model)).eval().requires_grad_(False)
        if self.config.learner.zero_stage < 3:
            return module.to(self.device)
        settings = deepspeed_config(self.config, 0.0, 0.0, 0.0)
        return deepspeed.initialize(model=module, config={k: v for k, v in settings.items() if k != "optimizer"})[0]

    def train(self, micro_batches: Sequence[Sequence[Example]], loss: Loss, denominator: float, learning_rate: float) -> Metrics:
        """One optimizer step. `denominator` is the number of weighted tokens over all ranks, so losses are means over them.

        Returns this rank's sums divided by the denominator (add them over ranks), and the gradient norm.
        """
        totals: dict[str, float] = defaultdict(float)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.train()
        for index, examples in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            batch = collate(examples, self.pad_id).to(self.device)
            if "reference" in self.frozen:
                with torch.no_grad():
                    batch.reference_logprobs, _ = self.frozen["reference"](batch)
            logprobs_t, entropy_t = self.engine(batch)
            value, sums = loss(logprobs_t, batch)
            # DeepSpeed averages gradients over ranks; the denominator is already global.
            self.engine.backward(value * (self.world / denominator))
            norm = self._plain_gradient_norm()
            self.engine.step()
            totals["entropy"] += float((batch.weights * entropy_t).sum()) / denominator
            for name, total in sums.items():
                totals[name] += float(total) / denominator
        return {**totals, "gradient_norm": float(self.engine.get_global_grad_norm() or norm)}

    def evaluate(self, micro_batches: Sequence[Sequence[Example]], loss: Loss, denominator: float) -> float:
        """This rank's share of the mean loss, without training."""
        self.engine.eval()
        total = 0.0
        with torch.no_grad():
            for examples in micro_batches:
                batch = collate(examples, self.pad_id).to(self.device)
                logprobs_t, _ = self.engine(batch)
                total += float(loss(logprobs_t, batch)[0])
        return total / denominator

    def freeze(self, name: str) -> None:
        """The frozen model of that name becomes a copy of the current policy."""
        if name not in self.frozen:
            self.frozen[name] = self._frozen(self.path)
        target = self.frozen[name] if self.config.learner.zero_stage < 3 else self.frozen[name].module
        for new, old in zip(self.engine.module.parameters(), target.parameters(), strict=True):
            sharded = self.config.learner.zero_stage == 3
            with gathered(new) if sharded else nullcontext(), gathered(old, writer=0) if sharded else nullcontext():
                old.data.copy_(new.data)

    def forward(self, micro_batches: Sequence[Sequence[Example]], model: str) -> dict[str, list[float]]:
        """Log-probabilities (a critic: values) of each example's trained tokens, by id; `model` is "" or a frozen one's name."""
        self.engine.eval()
        module = self.frozen[model] if model else self.engine
        result = {}
        with torch.no_grad():
            for examples in micro_batches:
                batch = collate(examples, self.pad_id).to(self.device)
                values_t = module(batch)[0]
                for index, example in enumerate(examples):
                    result[example.id] = values_t[batch.sequence == index].tolist()
        return result

    def publish(self, version: int) -> tuple[Bundle | None, float]:
        """The current weights under that version (rank 0; the others only take part in gathering), and the seconds it took."""
        started = time.monotonic()
        tensors = self._gathered()
        if self.rank == 0:
            bundle = put_bundle(version, tensors, self.config.learner.bucket_mib)
            return bundle, time.monotonic() - started
        for _ in tensors:
            pass
        return None, time.monotonic() - started

    def save(self, folder: str) -> None:
        """Write a Hugging Face folder (weights in bfloat16 or the configured type, tokenizer) that appears only when whole."""
        state = (
            {name: tensor.clone() for name, tensor in self._gathered()} if self.rank == 0 else [None for _ in self._gathered()]
        )
        if self.rank == 0:
            target, partial = Path(folder), Path(folder + ".partial")
            self.engine.module.model.save_pretrained(partial, state_dict=state)
            load_tokenizer(self.path).save_pretrained(partial)
            if target.exists():
                target.rename(folder + ".old")
            partial.rename(target)
            for old in Path(folder + ".old").glob("*"):
                old.unlink()
            if Path(folder + ".old").exists():
                Path(folder + ".old").rmdir()

    def _plain_gradient_norm(self) -> float:
        """Norm before clipping where DeepSpeed does not tell it: without ZeRO and in float32, where gradients are ordinary."""
        gradients = [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of every parameter, under Hugging Face names; shared tensors once.

        Under ZeRO 3 each tensor is whole only until the next one is asked for.
        """
        for name, parameter in self.engine.module.model.named_parameters():
            with gathered(parameter) if self.config.learner.zero_stage == 3 else nullcontext():
                yield name, parameter.data.clone() if self.config.learner.zero_stage == 3 else parameter.data


def gathered(parameter: torch.nn.Parameter, writer: int | None = None):
    """The whole tensor while the block lasts; what rank `writer` then holds is what every rank keeps."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer)


def join_ranks(address: tuple[str, int], rank: int, world: int, on_gpu: bool) -> None:
    host, port = address
    os.environ.update(
        MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", LOCAL_SIZE="1"
    )
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed

    # The shared-memory collectives need a C++ compiler and every rank on one host; gloo needs neither.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)


def deepspeed_config(config: Config, learning_rate: float, weight_decay: float, clip: float) -> dict:
    learner = config.learner
    zero = {"stage": learner.zero_stage}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    settings = {
        # Micro-batches are made by token budget and losses carry the global denominator; DeepSpeed must not rescale.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if learner.offload_optimizer:
        settings["optimizer"] = {
            "type": "AdamW",
            "params": {"lr": learning_rate, "weight_decay": weight_decay, "betas": [0.9, 0.95], "torch_adam": True},
        }
    return settings
