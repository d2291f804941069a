import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from srl.weights.bundle import check_bucket, checksum, fill_buckets, folder_tensors, pack


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
    found = load(pack(tensors).tobytes())
    assert set(found) == {name for name, _ in tensors}
    for name, tensor in tensors:
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_a_bucket_that_changed_on_its_way_is_refused_with_version_and_index():
    check_bucket(b"weights", checksum(b"weights"), version=4, index=2)
    with pytest.raises(ValueError, match="weights version 4, bucket 2: checksum"):
        check_bucket(b"Weights", checksum(b"weights"), version=4, index=2)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        list(folder_tensors(tmp_path))
