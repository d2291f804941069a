"""Several sequences in one row without padding: which go together, and attention that keeps them apart."""

import heapq
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "srl_packed"


def pack(lengths: Sequence[int], budget: int, ranks: int, units: Sequence[str] | None = None) -> list[list[list[int]]]:
    """Indices of `lengths`, for each rank the same number of rows of at most `budget` tokens, as few as hold all, about equally
    full.

    Sequences of the same non-empty unit share a row (a preference pair's loss needs both). What is longer than the budget is a
    row of its own. Rows may be empty: ranks that shard parameters must run the same number of forward passes.
    """
    members: dict[object, list[int]] = {}
    for index in range(len(lengths)):
        members.setdefault((units[index] if units else "") or index, []).append(index)
    sizes = sorted(((sum(lengths[index] for index in unit), unit) for unit in members.values()), key=lambda item: -item[0])

    def holds(rows_per_rank: int) -> bool:
        rows = fill(sizes, rows_per_rank * ranks)
        return all(sum(lengths[index] for index in row) <= budget or single for row, single in rows)

    least = max(1, -(-sum(min(size, budget) for size, _ in sizes) // (budget * ranks)))
    most = max(least, -(-len(sizes) // ranks))  # every unit alone
    low = high = least
    while not holds(high):
        low, high = high + 1, min(most, 2 * high - least + 1)
    rows = fill(sizes, (low + bisect_left(range(low, high), True, key=holds)) * ranks)
    return [[row for row, _ in rows[rank::ranks]] for rank in range(ranks)]


def fill(sizes: Sequence[tuple[int, list[int]]], count: int) -> list[tuple[list[int], bool]]:
    """Largest first, each into the row with the fewest tokens so far; with each row, whether it holds at most one unit."""
    rows: list[list[list[int]]] = [[] for _ in range(count)]
    lightest = [(0, row) for row in range(count)]
    for size, unit in sizes:
        tokens, row = lightest[0]
        rows[row].append(unit)
        heapq.heapreplace(lightest, (tokens + size, row))
    return [([index for unit in row for index in unit], len(row) <= 1) for row in rows]


def positions(lengths: Sequence[int]) -> torch.Tensor:
    """[1, tokens]: each sequence of the row counts from 0."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    lengths: Sequence[int],
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of a row's sequences: query [1, heads, tokens, size] -> [1, tokens, heads, size].

    One kernel call per sequence: no [tokens, tokens] mask exists and no work is spent between sequences. `lengths` are plain
    integers, so nothing waits for the device. Raises ValueError for a sequence longer than the model's sliding window.
    """
    if sliding_window is not None and max(lengths) > sliding_window:
        raise ValueError(f"a sequence of {max(lengths)} tokens exceeds the model's attention window of {sliding_window}")
    shared = key.shape[1] != query.shape[1]
    parts = zip(*(tensor.split(list(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shared)
        for q, k, v in parts
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


# No mask function has this name, so transformers makes no mask.
AttentionInterface.register(ATTENTION, packed_attention)
