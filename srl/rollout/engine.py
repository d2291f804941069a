"""The one file that knows vLLM: token ids in, token ids and log-probabilities out, weights replaced between steps.

Written against what vLLM 0.26 to 0.32 share.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srl.config import ModelConfig, RolloutConfig
from srl.weights.bucket import Bucket, Named, as_files, unpack

SHARED_MEMORY = Path("/dev/shm")
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
    `cached_tokens` of the prompt were found in the prefix cache.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    finished_by_length: bool
    weight_version: int = 0
    cached_tokens: int = 0


class WeightLoader:
    """Mixed into every vLLM worker, in whichever process it lives; called through `collective_rpc`.

    Layer-wise reload is vLLM's way to load into weights that were repacked after the first load.
    """

    def start_weights(self) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.model)

    def load_bucket(self, named: Named) -> None:
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            self.model_runner.model.load_weights(iter(named))

    def load_file(self, path: str) -> None:
        from safetensors.torch import load_file

        self.load_bucket(list(load_file(path).items()))

    def finish_weights(self) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model_runner.model, self.vllm_config.model_config)
            # An output layer tied to the embedding gets no tensor of its own, so its repacked copy would stay the old one.
            head = getattr(self.model_runner.model, "lm_head", None)
            if hasattr(head, "cpu_linear"):
                head.quant_method.process_weights_after_loading(head)


def prepare_environment(on_gpu: bool) -> None:
    """Must run before vLLM is imported.

    On CPU the engine shares the actor's process: with few cores a second process costs more than it brings.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if on_gpu else "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


class Engine:
    """Requests are added while others run; each `step` returns those that finished in it. For one thread only.

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
        self.own_process = rollout.gpus > 0
        self.stop_token_ids = stop_token_ids
        self.version = 0
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
        self.fresh.clear()
        return [completion(output, self.begun.pop(output.request_id)) for output in self.engine.step() if output.finished]

    def abort(self, request_ids: list[str]) -> None:
        self.engine.abort_request(request_ids)
        for request_id in request_ids:
            self.begun.pop(request_id, None)

    def load_weights(self, buckets: Sequence[Bucket], version: int) -> None:
        """Replace all weights by those in the buckets.

        Running requests keep their tokens; their keys and values are computed again with the new weights.
        """
        if self.own_process:
            self.engine.sleep(level=0, mode="keep")  # it would go on stepping with half of the weights
        self.engine.collective_rpc("start_weights")
        self._load(buckets)
        self.engine.collective_rpc("finish_weights")
        if not self.engine.reset_prefix_cache(reset_running_requests=bool(self.begun)):
            raise RuntimeError("vLLM refused to clear its prefix cache, which belongs to the old weights")
        if self.own_process:
            self.engine.wake_up(tags=["scheduling"])
        self.version = version
        self.begun |= {request_id: version for request_id in self.fresh if request_id in self.begun}

    def _load(self, buckets: Sequence[Bucket]) -> None:
        """One call per bucket. Workers in this process read it where it lies; others map it as a file."""
        if not self.own_process:
            for bucket in buckets:
                self.engine.collective_rpc("load_bucket", args=(unpack(bucket),))
            return
        with tempfile.TemporaryDirectory(prefix="srl-weights-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder:
            for file in as_files(buckets, Path(folder)):
                self.engine.collective_rpc("load_file", args=(str(file),))


def device_options(model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:
    """Engine arguments that depend on where it runs."""
    if rollout.gpus > 0:
        return {"gpu_memory_utilization": rollout.gpu_memory, "tensor_parallel_size": rollout.tensor_parallel}
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
