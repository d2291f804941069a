"""One bucket in one piece of memory, on any device, so that it is sent, opened and checked as one thing. Without Ray."""

import torch

from srl.weights.bucket import Named

Entry = tuple[str, str, list[int], int]  # name, torch's name of the type, shape, first byte

ALIGNED = 16  # bytes: every type can be viewed where a tensor begins
CHUNK = 2**20  # words that are multiplied at once
STEP = 0x9E3779B97F4A7C15 - 2**64  # odd, as a signed word: the golden ratio's bits
MASK = 2**64 - 1


def lay_out(named: Named) -> tuple[list[Entry], int]:
    """Where each tensor begins, and the bytes of the whole."""
    entries, offset = [], 0
    for name, tensor in named:
        entries.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset))
        offset += -(-tensor.nbytes // ALIGNED) * ALIGNED
    return entries, offset


def fill(flat: torch.Tensor, named: Named, entries: list[Entry]) -> None:
    """Copy the tensors to their places in `flat`, uint8 [size]."""
    for (_, tensor), (*_, offset) in zip(named, entries, strict=True):
        flat[offset : offset + tensor.nbytes].copy_(tensor.detach().contiguous().flatten().view(torch.uint8))


def cut(flat: torch.Tensor, entries: list[Entry]) -> Named:
    """The tensors, lying in `flat`."""
    named = []
    for name, kind, shape, offset in entries:
        dtype = getattr(torch, kind)
        size = torch.Size(shape).numel() * dtype.itemsize
        named.append((name, flat[offset : offset + size].view(dtype).view(shape)))
    return named


def digest(flat: torch.Tensor) -> str:
    """64 bits of uint8 [size], computed where it lies, the same on every device; any single changed word changes them.

    Each chunk is sum_i word_i m_i mod 2^64 with odd m_i, so that words count by their place too, and the whole a polynomial of
    its chunks. `size` is a multiple of 8.
    """
    words = flat.view(torch.int64)
    factors = torch.arange(1, min(CHUNK, words.numel()) + 1, device=flat.device) * STEP | 1
    sums = [product_sum(chunk, factors[: chunk.numel()]) for chunk in words.split(CHUNK)]
    total = 0
    for value in torch.stack(sums).tolist() if sums else ():
        total = (total * STEP + value) & MASK
    return f"{total:016x}"


def product_sum(words: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Modulo 2^64. GPUs have no `dot` of integers; CPUs have one that writes no products, several times as fast."""
    return (words * factors).sum() if words.is_cuda else torch.dot(words, factors)
