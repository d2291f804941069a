"""The one file that knows DeepSpeed: one data-parallel rank's model and optimizer, whole tensors in and out of their shards."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from datetime import timedelta

import torch
from torch import nn

from srl.config import Config
from srl.learner.batch import Batch
from srl.learner.lora import published

MOMENTS = ("exp_avg", "exp_avg_sq")
LATER_S = 60.0  # seconds that ranks wait for each other beyond the driver's wait for them


def join_ranks(address: tuple[str, int], rank: int, world: int, on_gpu: bool, timeout_s: float) -> None:
    """Meet the other ranks at `address`; returns when all are there.

    The driver waits for a rank `timeout_s` seconds and can say for what, so its wait ends first.
    """
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
    limit = timedelta(seconds=timeout_s + LATER_S)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False, timeout=limit)


def most_of_ranks(config: Config) -> Callable[[int], int]:
    """What gives the largest of all ranks' numbers when all of them ask, under ZeRO 3: there a call of a layer is a collective.

    Elsewhere a rank's own.
    """
    if zero_stage(config) < 3 or torch.distributed.get_world_size() == 1:
        return int

    def most(number: int) -> int:
        place = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        numbers = torch.tensor(number, device=place)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)

    return most


def needs_weights(config: Config) -> bool:
    """Whether a model must have its weights before it is handed over here: not where rank 0's are spread over all ranks."""
    return zero_stage(config) < 3 or torch.distributed.get_rank() == 0


def spread(module: nn.Module, settings: dict) -> None:
    """Under ZeRO 3: each rank keeps its share of rank 0's weights, one parameter after the other.

    DeepSpeed by itself puts the whole model on every GPU first, where a large one has no room.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, config_dict_or_path=settings)
    device = deepspeed.get_accelerator().current_device_name()
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
        torch.distributed.broadcast(buffer.data, 0)


class Engine:
    """Every method that touches weights is a collective: all ranks call it in the same order."""

    def __init__(self, module: nn.Module, config: Config, weight_decay: float, clip: float):
        import deepspeed

        self.stage = zero_stage(config)
        offload = config.learner.offload_optimizer
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # The learning rate is set before each step.
        adam = torch.optim.AdamW(trained, lr=0.0, weight_decay=weight_decay, betas=(0.9, 0.95))
        settings = deepspeed_config(config, weight_decay, clip)
        if self.stage == 3:
            spread(module, settings)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=None if offload else adam, model_parameters=trained, config=settings
        )
        self.device = self.engine.device

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.engine(batch)

    def train(self, mode: bool) -> None:
        self.engine.train(mode)

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def backward(self, loss: torch.Tensor, last: bool) -> float:
        """Add to the gradients; `last` ends the step: clip, update, clear. Returns the norm before clipping, of the last."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)
        plain = self._plain_norm() if last else 0.0
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or plain) if last else 0.0

    def set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def _plain_norm(self) -> float:
        """Where DeepSpeed does not tell the norm: without ZeRO, where gradients are ordinary tensors."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    # Weights

    def whole(self, parameters: list[nn.Parameter], writer: int | None = None):
        """A context in which these parameters are whole; what rank `writer` changes in them is then everybody's."""
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=writer)

    def buckets(self, limit: int) -> Iterator[tuple[list[tuple[str, Callable[[], torch.Tensor]]], ExitStack]]:
        """Consecutive weights of about `limit` bytes together: name, and what gives the tensor until the stack is closed."""
        bucket, inside, size = [], [], 0
        for name, parameters, tensor in published(self.module):
            # A sharded parameter's own numel is 0.
            bytes_ = getattr(parameters[0], "ds_numel", parameters[0].numel()) * parameters[0].element_size()
            if bucket and size + bytes_ > limit:
                yield bucket, self._opened(inside)
                bucket, inside, size = [], [], 0
            bucket.append((name, tensor))
            inside += parameters
            size += bytes_
        yield bucket, self._opened(inside)

    def _opened(self, parameters: list[nn.Parameter]) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(self.whole(parameters))
        return stack

    def free_cache(self) -> None:
        """Give back what torch keeps of the GPU without using it, lent memory included that nobody has open any more."""
        if self.device.type == "cuda":
            torch.cuda.ipc_collect()
            torch.cuda.empty_cache()

    def copy_to(self, other: nn.Module) -> None:
        """Give another model of the same shape, made by `frozen`, the current weights."""
        for new, old in zip(self.module.parameters(), self._plain(other).parameters(), strict=True):
            with self.whole([new]), self.whole([old], writer=0), torch.no_grad():
                old.copy_(new)

    def whole_parameters(self, other: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters of a model made by `frozen`, each whole until the next is asked for."""
        for name, parameter in self._plain(other).named_parameters():
            with self.whole([parameter]):
                yield name, parameter

    def overwrite(self, other: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        """Give a model made by `frozen` these weights."""
        for name, parameter in self._plain(other).named_parameters():
            with self.whole([parameter], writer=0), torch.no_grad():
                parameter.copy_(weights[name])

    def _plain(self, other: nn.Module) -> nn.Module:
        return other.module if self.stage == 3 else other

    # Optimizer state

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad)

    def optimizer_steps(self) -> int:
        return int(max((state["step"] for state in self._adam().state.values() if "step" in state), default=0))

    def state_of(self, parameter: nn.Parameter) -> Iterator[tuple[str, torch.Tensor]]:
        """Float32 weight and moments of a trained parameter, by name, whole, on every rank; each until the next is asked for."""
        if self.stage == 0:
            moments = self._adam().state.get(parameter, {})
            yield "weight", parameter.data
            yield from ((key, moments[key] if key in moments else torch.zeros_like(parameter)) for key in MOMENTS)
            return
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        yield "weight", safe_get_full_fp32_param(parameter)
        begun, shape = self.optimizer_steps() > 0, getattr(parameter, "ds_shape", parameter.shape)
        for key in MOMENTS:
            yield key, safe_get_full_optimizer_state(parameter, key) if begun else torch.zeros(shape, device=self.device)

    def restore(self, states: Iterator[tuple[str, dict[str, torch.Tensor]]], steps: int) -> None:
        """Inverse of `state_of` for every trained parameter; the optimizer continues after `steps` updates."""
        self._make_moments(steps)
        parameters = dict(self.trained())
        for name, state in states:
            parameter = parameters.pop(name)
            with self.whole([parameter], writer=0), torch.no_grad():
                parameter.copy_(state["weight"].view(parameter.shape))
            self._set_state(parameter, {key: value.to(self.device) for key, value in state.items()})
        if parameters:
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(parameters))}")

    def _set_state(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        if self.stage == 0:
            for key in MOMENTS:
                self._adam().state[parameter][key].copy_(state[key].view(parameter.shape))
            return
        from deepspeed import utils

        if self.stage < 3:
            utils.safe_set_full_fp32_param(parameter, state["weight"])
            for key in MOMENTS:
                utils.safe_set_full_optimizer_state(parameter, state[key], key)
            return
        # The setter for whole tensors cannot take a last shard that is padded.
        shard = utils.safe_get_local_fp32_param(parameter).numel()
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

        def local(value: torch.Tensor) -> torch.Tensor:
            flat = nn.functional.pad(value.flatten(), (0, shard * world - value.numel()))
            return flat[rank * shard : (rank + 1) * shard]

        utils.safe_set_local_fp32_param(parameter, local(state["weight"]))
        for key in MOMENTS:
            utils.safe_set_local_optimizer_state(parameter, local(state[key]), key)

    def _make_moments(self, steps: int) -> None:
        """Moments come into being with the first step; before a restore they must exist."""
        adam = self._adam()
        if self.stage == 3:
            flat = self.optimizer.fp32_partitioned_groups_flat
        else:
            flat = [parameter for group in adam.param_groups for parameter in group["params"]]
        for parameter in flat:
            # Existing ones are filled in place: DeepSpeed holds views of them.
            if "step" not in adam.state[parameter]:
                moments = {key: torch.zeros_like(parameter.data) for key in MOMENTS}
                adam.state[parameter] = {"step": torch.tensor(0.0), **moments}
            adam.state[parameter]["step"].fill_(steps)
        if self.stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _adam(self) -> torch.optim.Optimizer:
        return self.optimizer if self.stage == 0 else self.optimizer.optimizer


def frozen(module: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """A model for log-probabilities only; under ZeRO 3 it is sharded like the policy."""
    module = module.eval().requires_grad_(False)
    if zero_stage(config) < 3:
        return module.to(device)
    import deepspeed

    settings = {key: value for key, value in deepspeed_config(config, 0.0, 0.0).items() if key != "optimizer"}
    spread(module, settings)
    return deepspeed.initialize(model=module, config=settings)[0]


def zero_stage(config: Config) -> int:
    """Bfloat16 needs float32 masters and gradients summed in float32, which stages 2 and 3 hold (1 has an optimizer of its own).

    With one rank stage 2 shards nothing.
    """
    return max(config.learner.zero_stage, 2) if config.model.dtype == "bfloat16" else config.learner.zero_stage


def deepspeed_config(config: Config, weight_decay: float, clip: float) -> dict:
    learner, bfloat16 = config.learner, config.model.dtype == "bfloat16"
    zero = {"stage": zero_stage(config)}
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
        "bf16": {"enabled": bfloat16},
        # Micro-batches are summed in it. In bfloat16 a sum of 256 equal gradients stays what it is when the next one is added.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if learner.offload_optimizer:
        settings["optimizer"] = {
            "type": "AdamW",
            "params": {"lr": 0.0, "weight_decay": weight_decay, "betas": [0.9, 0.95], "torch_adam": True},
        }
    return settings
