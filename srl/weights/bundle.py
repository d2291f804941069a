"""The weights of one version on their way from learner to rollout: safetensors buckets in Ray's object store.

Each rollout actor pulls every bucket once, however many tensors it holds, checks it and hands it to its engine as a file in
shared memory, which the engine's own worker processes can map.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray
import torch
import xxhash
from safetensors import safe_open

Named = list[tuple[str, torch.Tensor]]
Lazy = list[tuple[str, Callable[[], torch.Tensor]]]
# safetensors' names of the types that weights come in
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Bundle:
    """`buckets` are (reference to a uint8 array with the bytes of a safetensors file, checksum); `size` is their total.

    `seconds` says what making it took: `gather` (waiting for other ranks' shards) and `pack` (copying, checksum, storing), which
    overlap.
    """

    version: int
    buckets: list[tuple[ray.ObjectRef, str]]
    size: int
    seconds: dict[str, float] = field(default_factory=dict)


def send(version: int, buckets: Iterable[tuple[Lazy, ExitStack]], sender: bool) -> Bundle | None:
    """Put buckets into the object store; a bucket's tensors may change once its stack is closed.

    While one bucket is copied the next is gathered, and no more: two buckets are whole at a time. Ranks that are not the
    `sender` only take part in the gathering and get None.
    """
    started, waited = time.monotonic(), 0.0
    packed: list[tuple[ray.ObjectRef, str, int, float]] = []
    earlier: tuple[Future, ExitStack] | None = None

    def settle() -> None:
        nonlocal waited
        if earlier is not None:
            before = time.monotonic()
            with earlier[1]:
                packed.append(earlier[0].result())
            waited += time.monotonic() - before

    with ThreadPoolExecutor(1, "send-weights") as thread:
        for lazy, opened in buckets:
            settle()
            earlier = (thread.submit(lambda lazy=lazy: store(plain(lazy))) if sender else done(), opened)
        settle()
    if not sender:
        return None
    seconds = {"gather": time.monotonic() - started - waited, "pack": sum(part[3] for part in packed)}
    return Bundle(version, [part[:2] for part in packed], sum(part[2] for part in packed), seconds)


def done() -> Future:
    future: Future = Future()
    future.set_result((None, "", 0, 0.0))
    return future


def plain(lazy: Lazy) -> Named:
    """Tensors, under the names by which Hugging Face and vLLM know them."""
    return [(name.removeprefix("model."), tensor()) for name, tensor in lazy]


def store(named: Named) -> tuple[ray.ObjectRef, str, int, float]:
    """(reference, checksum, bytes, seconds) of one bucket."""
    started = time.monotonic()
    content = pack(named)
    reference = ray.put(content)
    return reference, checksum(content), content.nbytes, time.monotonic() - started


def pack(named: Named) -> np.ndarray:
    """uint8 array with the bytes of a safetensors file; each tensor is copied once."""
    header, offset = {}, 0
    for name, tensor in named:
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = np.empty(8 + len(text) + offset, np.uint8)
    content[:8] = np.frombuffer(len(text).to_bytes(8, "little"), np.uint8)
    content[8 : 8 + len(text)] = np.frombuffer(text, np.uint8)
    data = torch.from_numpy(content)[8 + len(text) :]
    for name, tensor in named:
        begin, end = header[name]["data_offsets"]
        data[begin:end].copy_(tensor.contiguous().flatten().view(torch.uint8))
    return content


def fill_buckets(tensors: Iterable[tuple[str, torch.Tensor]], limit: int) -> Iterator[Named]:
    """Consecutive tensors, packed into buckets of at most `limit` bytes; a larger tensor is a bucket of its own."""
    bucket: Named = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def put_bundle(version: int, tensors: Iterable[tuple[str, torch.Tensor]], bucket_mib: int) -> Bundle:
    """One copy of whole tensors in the object store. They may change afterwards."""
    parts = [store(bucket) for bucket in fill_buckets(tensors, bucket_mib * 2**20)]
    return Bundle(version, [part[:2] for part in parts], sum(part[2] for part in parts))


def receive(bundle: Bundle, folder: Path, timeout_s: float) -> list[Path]:
    """Fetch and check every bucket and write it to the folder, as the safetensors file that it is; their paths, in order.

    Raises ValueError for a bucket that arrives changed, ray's GetTimeoutError for one that does not arrive in `timeout_s`.
    """
    paths = []
    for index, (reference, expected) in enumerate(bundle.buckets):
        content = ray.get(reference, timeout=timeout_s)
        check_bucket(content, expected, bundle.version, index)
        paths.append(folder / f"{index:05d}.safetensors")
        paths[-1].write_bytes(content)
    return paths


def folder_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a Hugging Face model folder. Raises FileNotFoundError when it has no safetensors file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors file")
    for file in files:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dictionary
                yield name, handle.get_tensor(name)


def checksum(content: bytes | np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(memoryview(content))


def check_bucket(content: bytes | np.ndarray, expected: str, version: int, index: int) -> None:
    if (found := checksum(content)) != expected:
        raise ValueError(f"weights version {version}, bucket {index}: checksum {found} instead of {expected}")
