"""Weights from learner to rollout: python -m benchmarks.weight_sync [--layers N] [--receivers 1 2 4] [--rounds N]

A model of random bfloat16 weights in the shape of Qwen2.5-0.5B goes from this process through Ray's object store into other
processes that hold the same tensors, as it goes to engines: buckets, checksums, shared memory, one call each. Beside it, on
the same actors and alternating with it: the same tensors with one call per parameter, as many trainers do it. What an engine
does with its copy is not measured. Prints JSON: seconds, bytes per second over those of a plain copy here, ratios.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

import ray
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from srl.weights.bucket import fill_buckets, unpack
from srl.weights.bundle import Bundle, receive, send

MIB = 2**20
WAIT_S = 300


class Receiver:
    """Holds the weights, as an engine does."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        torch.set_num_threads(1)
        self.weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}

    def load(self, bundle: Bundle) -> tuple[float, float]:
        """Seconds of the two parts of the way, as a rollout worker tells them."""
        started = time.monotonic()
        buckets = receive(bundle, WAIT_S)
        here = time.monotonic()
        for bucket in buckets:
            for name, tensor in unpack(bucket):
                self.weights[name].copy_(tensor)
        return here - started, time.monotonic() - here

    def load_one(self, name: str, content: torch.Tensor) -> None:
        self.weights[name].copy_(content)

    def get(self, name: str) -> torch.Tensor:
        return self.weights[name]


def named_weights(layers: int) -> list[tuple[str, torch.Tensor]]:
    """Random weights under the names and in the shapes of Qwen2.5-0.5B, with that many layers (24)."""
    shape = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    # Noise that repeats is as good here, and much faster to make.
    noise = torch.randn(2**20).bfloat16()
    return [
        (name, noise.repeat(parameter.numel() // noise.numel() + 1)[: parameter.numel()].view(parameter.shape).clone())
        for name, parameter in model.named_parameters()
    ]


def bundle_of(version: int, weights: list[tuple[str, torch.Tensor]], bucket_mib: int) -> Bundle:
    def buckets() -> Iterator[tuple[list, ExitStack]]:
        for bucket in fill_buckets(weights, bucket_mib * MIB):
            # Names of a learner's module begin with `model.` once more than the model's own.
            yield [(f"model.{name}", lambda tensor=tensor: tensor) for name, tensor in bucket], ExitStack()

    return send(version, buckets(), sender=True)


def in_buckets(weights: list, receivers: list, bucket_mib: int) -> dict[str, float]:
    """Seconds altogether, of the sender, and of the slowest receiver's two parts."""
    started = time.monotonic()
    bundle = bundle_of(1, weights, bucket_mib)
    sent = time.monotonic()
    parts = ray.get([receiver.load.remote(bundle) for receiver in receivers], timeout=WAIT_S)
    transfer, load = map(max, zip(*parts, strict=True))
    return {"all": time.monotonic() - started, "send": sent - started, "transfer": transfer, "load": load}


def one_by_one(weights: list, receivers: list) -> float:
    """Every parameter: into the object store, one call to each receiver, wait."""
    started = time.monotonic()
    for name, tensor in weights:
        reference = ray.put(tensor)
        ray.get([receiver.load_one.remote(name, reference) for receiver in receivers], timeout=WAIT_S)
    return time.monotonic() - started


def copy_speed() -> float:
    """Bytes per second of a plain copy in one thread, the best of five."""
    source, target = torch.ones(128 * MIB, dtype=torch.uint8), torch.zeros(128 * MIB, dtype=torch.uint8)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        target.copy_(source)
        seconds.append(time.monotonic() - started)
    return source.nbytes / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bucket-mib", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = named_weights(options.layers)
    size = sum(tensor.nbytes for _, tensor in weights)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=8, object_store_memory=2 * size + 256 * MIB, log_to_driver=False, include_dashboard=False)
    result = {"parameters": len(weights), "bytes": size, "copy_bytes_per_s": copy_speed(), "receivers": {}}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights}
    for count in options.receivers:
        receivers = [ray.remote(Receiver).options(num_cpus=0.5).remote(shapes) for _ in range(count)]
        result["receivers"][count] = compared(weights, receivers, options, result["copy_bytes_per_s"])
        for receiver in receivers:
            ray.kill(receiver)
    print(json.dumps(result, indent=1), flush=True)
    ray.shutdown()


def compared(weights: list, receivers: list, options: argparse.Namespace, copy_bytes_per_s: float) -> dict[str, float]:
    in_buckets(weights, receivers, options.bucket_mib)  # warms up, and must arrive
    name, expected = weights[len(weights) // 2]
    assert all(torch.equal(ray.get(receiver.get.remote(name), timeout=WAIT_S), expected) for receiver in receivers)
    rounds = [(in_buckets(weights, receivers, options.bucket_mib), one_by_one(weights, receivers)) for _ in range(options.rounds)]
    bucketed = {part: median(seconds[part] for seconds, _ in rounds) for part in rounds[0][0]}
    single = median(seconds for _, seconds in rounds)
    size = sum(tensor.nbytes for _, tensor in weights)
    return {
        "seconds": bucketed,
        "bytes_per_s_over_copy": size / bucketed["all"] / copy_bytes_per_s,
        "one_call_per_parameter_s": single,
        "one_call_per_parameter_over_buckets": median(single / seconds["all"] for seconds, single in rounds),
    }


if __name__ == "__main__":
    main()
