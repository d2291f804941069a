"""The one file that knows vLLM: token ids in, token ids and log-probabilities out, weights replaced between steps.

Written against what vLLM 0.26 to 0.32 share.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srl.config import ModelConfig, RolloutConfig


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one turn. `temperature` 0 is greedy; `seed` fixes the turn whatever else is in the batch."""

    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """`logprobs[i]` is the model's own log-probability of `token_ids[i]` at temperature 1, before any truncation."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    finished_by_length: bool


class WeightLoader:
    """Mixed into every vLLM worker, in whichever process it lives; called through `collective_rpc`.

    Layer-wise reload is vLLM's way to load into weights that were repacked after the first load.
    """

    def start_weights(self) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.model)

    def load_bucket(self, path: str) -> None:
        from safetensors.torch import load_file
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            self.model_runner.model.load_weights(iter(load_file(path).items()))

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
    """Requests are added while others run; each `step` returns those that finished in it."""

    def __init__(self, path: str, model: ModelConfig, rollout: RolloutConfig, stop_token_ids: list[int]):
        prepare_environment(rollout.gpus > 0)
        from vllm import EngineArgs, LLMEngine

        options: dict[str, Any] = {}
        if rollout.gpus > 0:
            options |= {"gpu_memory_utilization": rollout.gpu_memory, "tensor_parallel_size": rollout.tensor_parallel}
        else:
            # Compiling costs half a minute and gains a few per cent on CPU. A prompt cut in two would make vLLM rewind the
            # request's random generator, which CPU generators cannot do.
            options |= {
                "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(8192, model.max_length),
            }
        arguments = EngineArgs(
            model=path,
            tokenizer=path,
            dtype=model.dtype,
            max_model_len=model.max_length,
            max_num_seqs=rollout.max_sequences,
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            logprobs_mode="raw_logprobs",
            disable_log_stats=True,
            worker_extension_cls=f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
            **options,
        )
        self.engine = LLMEngine.from_engine_args(arguments)
        if not rollout.gpus:
            torch.set_num_threads(rollout.threads)
        self.stop_token_ids = stop_token_ids

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed if sampling.temperature > 0 else None,
            logprobs=0,
            stop_token_ids=self.stop_token_ids,
            detokenize=False,
        )
        self.engine.add_request(request_id, {"prompt_token_ids": token_ids}, parameters)

    def step(self) -> list[Completion]:
        return [completion(output) for output in self.engine.step() if output.finished]

    def abort(self, request_ids: list[str]) -> None:
        self.engine.abort_request(request_ids)

    def load_weights(self, buckets: list[Path]) -> None:
        """Replace all weights by those in the safetensors files, which every worker of this engine can read."""
        self.engine.collective_rpc("start_weights")
        for bucket in buckets:
            self.engine.collective_rpc("load_bucket", args=(str(bucket),))
        self.engine.collective_rpc("finish_weights")
        # Cached keys and values belong to the old weights.
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM refused to clear its prefix cache: requests were running during the weight update")


def completion(output: Any) -> Completion:
    sampled = output.outputs[0]
    token_ids = list(sampled.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(token_ids, sampled.logprobs, strict=True)]
    return Completion(output.request_id, token_ids, logprobs, sampled.finish_reason == "length")
