"""The one file that knows vLLM: token ids in, token ids and log-probabilities out, weights replaced between steps.

Written against what vLLM 0.27 to 0.32 share.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from srl.config import ModelConfig, RolloutConfig
from srl.rollout.machine import check_machine
from srl.trajectory import StopReason
from srl.weights.broadcast import BroadcastGroup
from srl.weights.bucket import Bucket, Named, as_files, unpack
from srl.weights.feed import Feed
from srl.weights.share import SharedFolder
from srl.weights.stream import Link, receive_part

PRIMITIVES = 256  # kernels that oneDNN keeps, one for each shape of a product, about 165 KiB each; its own 1,024 fill over hours
CPU_BLOCK = 32  # tokens in a block of the key-value cache; the CPU kernels want a multiple of 32


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one turn. `temperature` 0 is greedy; `seed` fixes the turn whatever else is in the batch."""

    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """`logprobs[i]` is the model's own log-probability of `token_ids[i]` at temperature 1, before any truncation.

    `weight_version` is that of the weights the first token was sampled with: weights may be replaced before the last one.
    `cached_tokens` of the prompt were found in the prefix cache. `ended` is why the trajectory stops here, where it is replayed
    and nothing was sampled for this request.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    finished_by_length: bool
    weight_version: int = 0
    cached_tokens: int = 0
    ended: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One bucket for vLLM's `update_weights`: as tensors, as a safetensors file, or as a part by place (`receive_part`)."""

    tensors: Named = ()
    file: str = ""
    parts: dict[str, dict] = field(default_factory=dict)


class WeightLoader:
    """Mixed into every vLLM worker, in whichever process it lives; called through `collective_rpc`.

    vLLM's worker drives a weight-transfer engine of ours by its own calls: `init_weight_transfer_engine` joins a broadcast,
    `start_weight_update`, `update_weights` once per bucket, `finish_weight_update`.
    """

    def make_transfer(self) -> None:
        self.weight_transfer_engine = bucket_transfer()(self)

    def transfer_seconds(self) -> dict[str, float]:
        """Of the last update: `transfer` (until parts were here and checked) and `load`."""
        return dict(self.weight_transfer_engine.seconds)


def bucket_transfer() -> type:
    """The class of that engine: vLLM's own for CUDA IPC, layer-wise reload included, with other ways for a bucket to arrive."""
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

    class BucketTransfer(IPCWeightTransferEngine):
        init_info_cls, update_info_cls = Link, Update

        def __init__(self, worker: Any):
            super().__init__(WeightTransferConfig("ipc"), worker.vllm_config, worker.device, worker.model_runner.get_model())
            self.group: BroadcastGroup | None = None
            self.seconds: Counter[str] = Counter()

        def init_transfer_engine(self, link: Link) -> None:
            self.shutdown()
            rank = link.first_rank + self.parallel_config.rank
            self.group = BroadcastGroup(rank, link.size, self.device, link.timeout_s, tuple(link.address))

        def start_weight_update(self) -> None:
            self.seconds.clear()
            if self.device.type == "cpu":
                forget_kernels(self.model)
            super().start_weight_update()

        def update_weights(self, update_info: dict[str, Any]) -> None:
            update = Update(**update_info)
            started = time.monotonic()
            named, transfer_s = update.tensors, 0.0
            if update.file:
                named = list(load_file(update.file).items())
            elif update.parts:
                named, transfer_s = receive_part(update.parts, self.device, self.group)
            self.model.load_weights(iter(named))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds.update(transfer=transfer_s, load=time.monotonic() - started - transfer_s)

        def finish_weight_update(self) -> None:
            super().finish_weight_update()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what buckets came in may be what the cache needs to wake up
            # An output layer tied to the embedding gets no tensor of its own, so its repacked copy would stay the old one.
            head = getattr(self.model, "lm_head", None)
            if hasattr(head, "cpu_linear"):
                head.quant_method.process_weights_after_loading(head)

        def shutdown(self) -> None:
            if self.group is not None:
                self.group.close()
            self.group = None

    return BucketTransfer


def forget_kernels(model: nn.Module) -> None:
    """Experts on CPU are repacked only for a layer that has no kernel yet; with one, vLLM leaves new weights as they came."""
    for module in model.modules():
        if hasattr(method := getattr(module, "quant_method", None), "moe_kernel"):
            method.moe_kernel = None


def prepare_environment(on_gpu: bool) -> None:
    """Must run before vLLM is imported. Raises ConfigError where the system lacks something.

    On CPU the engine shares the actor's process: with few cores a second process costs more than it brings.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if on_gpu else "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    if not on_gpu:
        check_machine()


class Engine:
    """Requests are added while others run; each `step` returns those that finished in it. For one thread at a time.

    `version` is that of the weights; the model folder's own are version 0.
    """

    def __init__(self, path: str, model: ModelConfig, rollout: RolloutConfig, stop_token_ids: list[int]):
        prepare_environment(rollout.gpus > 0)
        if not rollout.gpus:
            torch.set_num_threads(rollout.threads)  # vLLM turns this call off once it has started
        from vllm import EngineArgs, LLMEngine

        arguments = EngineArgs(
            model=path,
            tokenizer=path,
            load_format="safetensors",
            dtype=model.dtype,
            max_model_len=model.max_length,
            max_num_seqs=rollout.max_sequences,
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            logprobs_mode="raw_logprobs",
            disable_log_stats=True,
            worker_extension_cls=f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
            **device_options(model, rollout),
        )
        self.engine = LLMEngine.from_engine_args(arguments)
        self.engine.collective_rpc("make_transfer")
        self.own_process = rollout.gpus > 0
        self.stop_token_ids = stop_token_ids
        self.version, self.asleep = 0, False
        self.begun: dict[str, int] = {}  # weight version at the start of each running request
        self.fresh: list[str] = []  # submitted since the last step

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed if sampling.temperature > 0 else None,
            logprobs=0,
            flat_logprobs=True,
            stop_token_ids=self.stop_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.engine.add_request(request_id, {"prompt_token_ids": token_ids}, parameters)
        self.begun[request_id] = self.version
        self.fresh.append(request_id)

    def step(self) -> list[Completion]:
        # A thread takes over the process's number of threads when it first asks for it. One that has not would begin this step
        # with another number than it ends it with, which vLLM's attention refuses.
        torch.get_num_threads()
        self.fresh.clear()
        return [completion(output, self.begun.pop(output.request_id)) for output in self.engine.step() if output.finished]

    def abort(self, request_ids: list[str]) -> None:
        self.engine.abort_request(request_ids)
        for request_id in request_ids:
            self.begun.pop(request_id, None)

    def load_weights(self, buckets: Iterable[Bucket] | Feed, version: int) -> dict[str, float]:
        """Replace all weights by those in the buckets; the seconds of their `transfer`, where vLLM fetched them, and `load`.

        Running requests keep their tokens; their keys and values are computed again with the new weights. An engine that sleeps
        gets memory for its weights first, and for its cache when the weights are there, which may take what they came in.
        """
        if self.asleep:
            self.engine.wake_up(tags=["weights"])
        elif self.own_process:
            self.engine.sleep(level=0, mode="keep")  # it would go on stepping with half of the weights
        self.engine.collective_rpc("start_weight_update")
        for update in self._updates(buckets):
            self._update(update)
        self.engine.collective_rpc("finish_weight_update")
        seconds = self.engine.collective_rpc("transfer_seconds")
        if not self.engine.reset_prefix_cache(reset_running_requests=bool(self.begun)):
            raise RuntimeError("vLLM refused to clear its prefix cache, which belongs to the old weights")
        if self.asleep or self.own_process:
            self.engine.wake_up(tags=["kv_cache", "scheduling"] if self.asleep else ["scheduling"])
        self.version, self.asleep = version, False
        self.begun |= {request_id: version for request_id in self.fresh if request_id in self.begun}
        return {name: max(each.get(name, 0.0) for each in seconds) for name in ("transfer", "load")}

    def sleep(self) -> None:
        """Give back the GPU's memory, weights and all, until weights are loaded. On CPU vLLM only pauses."""
        if self.begun:
            raise RuntimeError(f"{len(self.begun)} requests are running: the engine cannot sleep")
        if not self.asleep:
            self.engine.sleep(level=2)
        self.asleep = True

    def _update(self, update: dict[str, Any] | Link) -> None:
        if isinstance(update, Link):
            self.engine.collective_rpc("init_weight_transfer_engine", args=(asdict(update),))
            return
        try:
            self.engine.collective_rpc("update_weights", args=(update,))
        except Exception as error:
            if "checksum" in str(error):  # from a worker in another process only the text comes
                raise ValueError(str(error)) from error
            raise

    def _updates(self, buckets: Iterable[Bucket] | Feed) -> Iterator[dict[str, Any] | Link]:
        """One per bucket. Workers in this process read it where it lies; others map it as a file, or fetch it themselves."""
        if isinstance(buckets, Feed):
            yield from (item if isinstance(item, Link) else {"parts": item} for item in buckets)
        elif not self.own_process:
            yield from ({"tensors": unpack(bucket)} for bucket in buckets)
        else:
            with closing(SharedFolder()) as folder:
                yield from ({"file": str(file)} for file in as_files(buckets, folder.path))


def device_options(model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:
    """Engine arguments that depend on where it runs."""
    if rollout.gpus > 0:
        options = {"gpu_memory_utilization": rollout.gpu_memory, "tensor_parallel_size": rollout.tensor_parallel}
        return {**options, "enable_sleep_mode": rollout.colocate}
    # Compiling costs half a minute and gains a few per cent on CPU. A prompt cut in two would make vLLM rewind the request's
    # random generator, which CPU generators cannot do. Only whole blocks are found again in the prefix cache: vLLM's 128 tokens
    # on CPU are longer than a short prompt.
    return {
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, model.max_length),
        "block_size": CPU_BLOCK,
    }


def completion(output: Any, version: int) -> Completion:
    sampled = output.outputs[0]
    token_ids = list(sampled.token_ids)
    logprobs = list(sampled.logprobs.logprobs)  # with logprobs=0 one for each token, that of the sampled one
    if len(logprobs) != len(token_ids):
        raise RuntimeError(f"vLLM returned {len(logprobs)} log-probabilities for {len(token_ids)} tokens")
    by_length = sampled.finish_reason == "length"
    return Completion(output.request_id, token_ids, logprobs, by_length, version, output.num_cached_tokens or 0)
