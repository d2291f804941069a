"""Weights from learner to rollout: python -m benchmarks.weight_sync [--shape 0.5b] [--layers N] [--receivers 1 2 4] [--rounds N]

A model of random bfloat16 weights in the shape of Qwen2.5's 0.5B, 1.5B or 7B goes from one process into others that hold the
same tensors, as it goes to engines, by each of the three ways: as buckets through Ray's object store, or straight from the
sender by `broadcast` (gloo) and `ipc` (a file that both map). Beside them, on the same actors and alternating with them, one
call per parameter and receiver, each waited for, in two encodings: `one_call_per_parameter` puts the torch tensor itself into
the object store, as many trainers do, and most of its time is the pickling of tensors; `one_call_per_parameter_as_bytes` puts
each as a bucket of its own, without checksum, so that what it takes longer than `store` is the price of the calls. What an
engine does with its copy is not measured. That every tensor arrives is checked once per way, before. Prints JSON: seconds,
bytes per second over those of a plain copy here, ratios.
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
from ray.actor import ActorHandle
from transformers import AutoModelForCausalLM, Qwen2Config

from srl.commands.numbers import at_least
from srl.weights.broadcast import BroadcastGroup, open_store
from srl.weights.bucket import Bucket, checksum, fill_buckets, pack, unpack
from srl.weights.bundle import Bundle, Lazy, receive, send
from srl.weights.stream import Link, Outgoing, Part, Stream, hand_over, receive_part

SHAPES = {  # of Qwen2.5
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
SMALL = {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
CPU = torch.device("cpu")
MIB = 2**20
WAIT_S = 300
CALLS = {"one_call_per_parameter": False, "one_call_per_parameter_as_bytes": True}  # whether each goes as a bucket does


class Receiver:
    """Holds the weights, as an engine does."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        torch.set_num_threads(1)
        self.weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        self.group: BroadcastGroup | None = None

    def load(self, bundle: Bundle) -> tuple[float, float]:
        """Seconds of the two parts of the way, as a rollout worker tells them."""
        started = time.monotonic()
        buckets = receive(bundle, WAIT_S)
        here = time.monotonic()
        for bucket in buckets:
            self.load_bucket(bucket)
        return here - started, time.monotonic() - here

    def load_part(self, part: dict[str, dict] | Link) -> None:
        if isinstance(part, Link):
            self.group = BroadcastGroup(part.first_rank, part.size, CPU, part.timeout_s, part.address)
            return
        named, _ = receive_part(part, CPU, self.group)
        for name, tensor in named:
            self.weights[name].copy_(tensor)

    def load_bucket(self, bucket: Bucket) -> None:
        for name, tensor in unpack(bucket):
            self.weights[name].copy_(tensor)

    def load_one(self, name: str, tensor: torch.Tensor) -> None:
        self.weights[name].copy_(tensor)

    def take(self) -> str:
        """Digest of all weights, which are zero from now on."""
        found = checksum(pack(list(self.weights.items())))
        for tensor in self.weights.values():
            tensor.zero_()
        return found


class Sender:
    """Hands over what it holds, as a learner's only rank does."""

    def __init__(self, shape: str, layers: int | None, bucket_mib: int):
        torch.set_num_threads(1)
        self.weights, self.bucket_mib = named_weights(shape, layers), bucket_mib
        self.group: BroadcastGroup | None = None

    def open_link(self) -> tuple[str, int]:
        self.store, address = open_store(ray.util.get_node_ip_address(), WAIT_S)
        return address

    def join_link(self, size: int) -> None:
        self.group = BroadcastGroup(0, size, CPU, WAIT_S, self.store)

    def begin(self, broadcast: bool) -> None:
        self.outgoing = Outgoing(1, learner_buckets(self.weights, self.bucket_mib), CPU, sends=True, broadcast=broadcast)

    def stage(self) -> Part | None:
        return self.outgoing.stage(self.group)

    def finish(self) -> None:
        self.outgoing.finish(self.group)


class OneRank:
    """The sender as `hand_over` wants it. An error ends the benchmark, so nothing is broken off or sent again."""

    def __init__(self, sender: ActorHandle):
        self.sender, self.linked = sender, frozenset()

    def open_link(self) -> tuple[str, int]:
        return ray.get(self.sender.open_link.remote(), timeout=WAIT_S)

    def join_link(self, size: int) -> ray.ObjectRef:
        return self.sender.join_link.remote(size)

    def stage(self) -> list[ray.ObjectRef]:
        return [self.sender.stage.remote()]

    def staged(self, references: list[ray.ObjectRef]) -> list[Part | None]:
        return ray.get(references, timeout=WAIT_S)

    def finish(self) -> None:
        ray.get(self.sender.finish.remote(), timeout=WAIT_S)


def named_weights(shape: str, layers: int | None) -> list[tuple[str, torch.Tensor]]:
    """Random weights under the names and in the shapes of that model, all layers or so many."""
    numbers = SMALL | SHAPES[shape]
    config = Qwen2Config(**numbers | {"num_hidden_layers": layers or numbers["num_hidden_layers"]})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # Noise that repeats is as good here, and much faster to make; the same in every process.
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
    return [
        (name, noise.repeat(parameter.numel() // noise.numel() + 1)[: parameter.numel()].view(parameter.shape).clone())
        for name, parameter in model.named_parameters()
    ]


def learner_buckets(weights: list[tuple[str, torch.Tensor]], bucket_mib: int) -> Iterator[tuple[Lazy, ExitStack]]:
    for bucket in fill_buckets(weights, bucket_mib * MIB):
        yield lambda bucket=bucket: bucket, ExitStack()


def bundle_of(version: int, weights: list[tuple[str, torch.Tensor]], bucket_mib: int) -> Bundle:
    return send(version, learner_buckets(weights, bucket_mib), sender=True)


def in_buckets(weights: list, receivers: list, bucket_mib: int) -> dict[str, float]:
    """Seconds altogether, of the sender, and of the slowest receiver's two parts."""
    started = time.monotonic()
    bundle = bundle_of(1, weights, bucket_mib)
    sent = time.monotonic()
    parts = ray.get([receiver.load.remote(bundle) for receiver in receivers], timeout=WAIT_S)
    transfer, load = map(max, zip(*parts, strict=True))
    return {"all": time.monotonic() - started, "send": sent - started, "transfer": transfer, "load": load}


def straight(source: OneRank, receivers: list, way: str) -> dict[str, float]:
    """Seconds altogether, and of the sender's copying and digests."""
    stream = Stream(1, source, broadcast=way == "broadcast")
    started = time.monotonic()
    ray.get(source.sender.begin.remote(stream.broadcast), timeout=WAIT_S)
    lost = hand_over(stream, {str(index): receiver for index, receiver in enumerate(receivers)}, 1, WAIT_S)
    if lost:
        raise RuntimeError(f"weights by {way}: {lost}")
    return {"all": time.monotonic() - started, "pack": stream.seconds["pack"]}


def one_by_one(weights: list, receivers: list, as_bytes: bool) -> dict[str, float]:
    """Every parameter: into the object store, one call to each receiver, wait."""
    started = time.monotonic()
    for name, tensor in weights:
        if as_bytes:
            reference = ray.put(pack([(name, tensor)]))
            calls = [receiver.load_bucket.remote(reference) for receiver in receivers]
        else:
            reference = ray.put(tensor)
            calls = [receiver.load_one.remote(name, reference) for receiver in receivers]
        ray.get(calls, timeout=WAIT_S)
    return {"all": time.monotonic() - started}


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
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--layers", type=at_least(1), help="fewer layers than the model has")
    parser.add_argument("--receivers", type=at_least(1), nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--bucket-mib", type=at_least(1), default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = named_weights(options.shape, options.layers)
    size = sum(tensor.nbytes for _, tensor in weights)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=8, object_store_memory=2 * size + 256 * MIB, log_to_driver=False, include_dashboard=False)
    result = {"shape": options.shape, "parameters": len(weights), "bytes": size, "copy_bytes_per_s": copy_speed()}
    result["receivers"] = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights}
    for count in options.receivers:
        # A new one each time: the old one is a member of a group with receivers that are gone.
        sender = ray.remote(Sender).options(num_cpus=0.5).remote(options.shape, options.layers, options.bucket_mib)
        receivers = [ray.remote(Receiver).options(num_cpus=0.5).remote(shapes) for _ in range(count)]
        result["receivers"][count] = compared(weights, sender, receivers, options, result["copy_bytes_per_s"])
        for actor in (sender, *receivers):
            ray.kill(actor)
    print(json.dumps(result, indent=1), flush=True)
    ray.shutdown()


def compared(
    weights: list, sender: ActorHandle, receivers: list, options: argparse.Namespace, copy_bytes_per_s: float
) -> dict[str, dict]:
    """By way of transfer, medians of rounds in which the ways take turns."""
    source = OneRank(sender)
    ways = {
        "store": lambda: in_buckets(weights, receivers, options.bucket_mib),
        "broadcast": lambda: straight(source, receivers, "broadcast"),
        "ipc": lambda: straight(source, receivers, "ipc"),
        **{way: lambda as_bytes=as_bytes: one_by_one(weights, receivers, as_bytes) for way, as_bytes in CALLS.items()},
    }
    expected = checksum(pack(weights))
    for way in ways:
        ways[way]()  # warms up, and must arrive
        assert all(ray.get(receiver.take.remote(), timeout=WAIT_S) == expected for receiver in receivers), way
    rounds = [{way: run() for way, run in ways.items()} for _ in range(options.rounds)]
    size = sum(tensor.nbytes for _, tensor in weights)
    result = {}
    for way in ways:
        seconds = {part: median(each[way][part] for each in rounds) for part in rounds[0][way]}
        result[way] = {
            "seconds": seconds,
            "bytes_per_s_over_copy": size / seconds["all"] / copy_bytes_per_s,
            **{f"{calls}_over_it": median(each[calls]["all"] / each[way]["all"] for each in rounds) for calls in CALLS},
        }
    return result


if __name__ == "__main__":
    main()
