"""A bucket: several tensors as the parts of a safetensors file, lying where they are until somebody copies them. Without Ray."""

import json
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import safe_open

Named = list[tuple[str, torch.Tensor]]
Bucket = tuple[bytes, list[np.ndarray]]  # a safetensors file's header, and each tensor's bytes as uint8
# safetensors' names of the types that weights come in
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def pack(named: Named) -> Bucket:
    """The tensors' own memory where they are on CPU and contiguous."""
    header, arrays, offset = {}, [], 0
    for name, tensor in named:
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        arrays.append(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, arrays


def unpack(bucket: Bucket) -> Named:
    """Inverse of `pack`: the tensors lie in the bucket's memory and must not be written to."""
    header, arrays = bucket
    entries = json.loads(header[8:])
    types = {name: dtype for dtype, name in DTYPES.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that cannot be written
        return [
            (name, torch.from_numpy(array).view(types[entry["dtype"]]).view(entry["shape"]))
            for (name, entry), array in zip(entries.items(), arrays, strict=True)
        ]


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


def write_bucket(bucket: Bucket, file: Path) -> None:
    """The safetensors file that a bucket is."""
    header, arrays = bucket
    with file.open("wb") as out:
        out.write(header)
        for array in arrays:
            out.write(array)


def as_files(buckets: Iterable[Bucket], folder: Path) -> Iterator[Path]:
    """Each bucket as a file in the folder, while the next one is written, and then deleted: who maps it may keep it."""

    def lent(file: Path, writing: Future) -> Iterator[Path]:
        writing.result()
        yield file
        file.unlink()

    earlier: tuple[Path, Future] | None = None
    with ThreadPoolExecutor(1, "write-weights") as thread:
        for index, bucket in enumerate(buckets):
            file = folder / f"{index:05d}.safetensors"
            coming = file, thread.submit(write_bucket, bucket, file)
            if earlier:
                yield from lent(*earlier)
            earlier = coming
        if earlier:
            yield from lent(*earlier)


def folder_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a Hugging Face model folder. Raises FileNotFoundError when it has no safetensors file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors file")
    for file in files:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dictionary
                yield name, handle.get_tensor(name)


def checksum(bucket: Bucket) -> str:
    header, arrays = bucket
    digest = xxhash.xxh3_128(header)
    for array in arrays:
        digest.update(array)
    return digest.hexdigest()


def check_bucket(bucket: Bucket, expected: str, version: int, index: int) -> Bucket:
    """The bucket. Raises ValueError when it is not what was sent."""
    if (found := checksum(bucket)) != expected:
        raise ValueError(f"weights version {version}, bucket {index}: checksum {found} instead of {expected}")
    return bucket
