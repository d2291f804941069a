"""The weights of one version on their way from learner to rollout: safetensors buckets in Ray's object store.

Each rollout actor pulls every bucket once, however many tensors it holds, checks it and hands it to its engine as a file in
shared memory, which the engine's own worker processes can map.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from safetensors import safe_open
from safetensors.torch import save


@dataclass(frozen=True)
class Bundle:
    """`buckets` are (reference to safetensors bytes, checksum); `size` is their total in bytes."""

    version: int
    buckets: list[tuple[ray.ObjectRef, str]]
    size: int


def fill_buckets(tensors: Iterable[tuple[str, torch.Tensor]], limit: int) -> Iterator[dict[str, torch.Tensor]]:
    """Consecutive tensors, packed into buckets of at most `limit` bytes; a larger tensor is a bucket of its own."""
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor
        size += tensor.nbytes
    if bucket:
        yield bucket


def put_bundle(version: int, tensors: Iterable[tuple[str, torch.Tensor]], bucket_mib: int) -> Bundle:
    """One copy of the weights in the object store. The tensors may change afterwards."""
    buckets, total = [], 0
    for bucket in fill_buckets(tensors, bucket_mib * 2**20):
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in bucket.items()})
        buckets.append((ray.put(content), checksum(content)))
        total += len(content)
    return Bundle(version, buckets, total)


def folder_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a Hugging Face model folder. Raises FileNotFoundError when it has no safetensors file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors file")
    for file in files:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dictionary
                yield name, handle.get_tensor(name)


def checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def check_bucket(content: bytes, expected: str, version: int, index: int) -> None:
    if (found := checksum(content)) != expected:
        raise ValueError(f"weights version {version}, bucket {index}: checksum {found} instead of {expected}")
