"""What the benchmark of the weight sync compares arrives whole."""

import os
from collections.abc import Iterator

import pytest
import ray
import torch

from benchmarks.weight_sync import CALLS, Receiver, in_buckets, one_by_one
from srl.weights.bucket import checksum, pack

WEIGHTS = [(name, torch.full(shape, value).bfloat16()) for name, shape, value in (("a", (3, 5), 1.5), ("b", (7,), -2.0))]


@pytest.fixture(scope="module")
def receivers() -> Iterator[list]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in WEIGHTS}
    yield [ray.remote(Receiver).options(num_cpus=0.5).remote(shapes) for _ in range(2)]
    ray.shutdown()


@pytest.mark.parametrize("way", ["store", *CALLS])
def test_each_way_of_the_comparison_delivers_every_tensor(receivers: list, way: str):
    expected = checksum(pack(WEIGHTS))
    empty = [receiver.take.remote() for receiver in receivers]
    assert expected not in ray.get(empty)
    in_buckets(WEIGHTS, receivers, 1) if way == "store" else one_by_one(WEIGHTS, receivers, CALLS[way])
    assert ray.get([receiver.take.remote() for receiver in receivers]) == [expected, expected]
