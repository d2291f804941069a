import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from srl.weights.bucket import as_files, fill_buckets, folder_tensors, pack, unpack
from srl.weights.bundle import put_bundle, receive


def tensor(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def names(sizes: list[int], limit: int) -> list[list[str]]:
    named = [(str(index), tensor(size)) for index, size in enumerate(sizes)]
    return [[name for name, _ in bucket] for bucket in fill_buckets(named, limit)]


def test_tensors_are_packed_in_order_up_to_the_limit():
    assert names([4, 4, 2, 5, 5], limit=10) == [["0", "1", "2"], ["3", "4"]]


def test_a_tensor_above_the_limit_is_a_bucket_of_its_own():
    assert names([3, 20, 3, 3], limit=10) == [["0"], ["1"], ["2", "3"]]


def test_no_tensors_are_no_buckets():
    assert names([], limit=10) == []


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 40))
def test_every_tensor_is_in_exactly_one_bucket_and_only_single_ones_exceed_the_limit(sizes, limit):
    buckets = names(sizes, limit)
    assert [name for bucket in buckets for name in bucket] == [str(index) for index in range(len(sizes))]
    for bucket in buckets:
        total = sum(sizes[int(name)] for name in bucket)
        assert total <= limit or sizes[int(bucket[0])] == total


def test_a_packed_bucket_is_a_safetensors_file():
    several = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(4, 2).t(), "c": torch.tensor(2.5), "d": torch.ones(1).half()}
    tensors = list(several.items())
    header, arrays = pack(tensors)
    for found in (load(b"".join([header, *arrays])), dict(unpack((header, arrays)))):
        assert set(found) == {name for name, _ in tensors}
        for name, tensor in tensors:
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


def test_what_was_put_into_the_store_is_received_in_memory_or_as_files_of_which_two_exist_at_a_time(store, tmp_path):
    sent = {str(n): torch.full((5, 2**18), float(n)) for n in range(6)}  # 5 MiB each
    bundle = put_bundle(3, sent.items(), bucket_mib=10)
    for tensor in sent.values():
        tensor.zero_()  # the store has its own copy
    assert (bundle.version, len(bundle.buckets), bundle.size) == (3, 3, 30 * 2**20)
    found = {}
    here = {name: tensor.unique().tolist() for bucket in receive(bundle, 60) for name, tensor in unpack(bucket)}
    for file in as_files(receive(bundle, 60), tmp_path):
        assert len(list(tmp_path.iterdir())) <= 2
        found |= load_file(file)
    assert not list(tmp_path.iterdir())
    assert here == {name: tensor.unique().tolist() for name, tensor in found.items()} == {str(n): [float(n)] for n in range(6)}


def test_a_bucket_that_changed_on_its_way_is_refused_with_version_and_index_before_anybody_has_it(store):
    whole = put_bundle(4, [("a", torch.zeros(3)), ("b", torch.ones(2**20))], bucket_mib=1)
    (first, _), (second, expected) = whole.buckets
    with pytest.raises(ValueError, match=f"weights version 4, bucket 0: checksum .* instead of {expected}"):
        next(receive(replace(whole, buckets=[(first, expected), (second, expected)]), 60))
    header, (weights,) = pack([("b", torch.ones(2**20))])
    weights[-1] ^= 1  # one bit
    buckets = receive(replace(whole, buckets=[whole.buckets[0], (ray.put((header, [weights])), expected)]), 60)
    assert [name for name, _ in unpack(next(buckets))] == ["a"]
    with pytest.raises(ValueError, match="weights version 4, bucket 1: checksum"):
        next(buckets)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        list(folder_tensors(tmp_path))


def test_no_bucket_is_empty_where_the_first_tensor_is_above_the_limit():
    assert names([20, 3], limit=10) == [["0"], ["1"]]
