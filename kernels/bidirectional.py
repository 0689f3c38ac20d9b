"""Attention of whole sequences to themselves, on either side and without a cache."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sirocco.kernels.attention import AttentionBatch

_QUERY_TILE = 128  # queries that share a range of keys under a window


def bidirectional_attention(
    q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, scale: float, window: int | None = None
) -> Tensor:
    """Attend from q [T, H, D] to k and v [T, Hkv, D] of the same sequence; returns [T, H, D] in q.dtype.

    The sequences lie side by side with `batch.query_lens` tokens each. A query sees the keys at a distance below
    `window` on either side. Neighbours of equal length are computed together, so sort sequences by length.
    """
    out = torch.empty_like(q)
    start = 0
    for length, run in itertools.groupby(batch.query_lens):
        count = len(list(run))
        rows = slice(start, start + count * length)
        q_run, k_run, v_run, out_run = (
            x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v, out)
        )  # [B, heads, L, D]
        for queries, keys in _tiles(length, window):
            mask = None if window is None else _mask(queries, keys, window, q.device)
            out_run[:, :, queries] = F.scaled_dot_product_attention(
                q_run[:, :, queries], k_run[:, :, keys], v_run[:, :, keys], mask, scale=scale, enable_gqa=True
            )
        start = rows.stop
    return out


def _tiles(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Ranges of queries, each with the keys that any of them sees."""
    if window is None or window >= length:
        yield slice(0, length), slice(0, length)
        return
    for start in range(0, length, _QUERY_TILE):
        stop = min(start + _QUERY_TILE, length)
        yield slice(start, stop), slice(max(0, start - window + 1), min(length, stop + window - 1))


def _mask(queries: slice, keys: slice, window: int, device: torch.device) -> Tensor:
    query = torch.arange(queries.start, queries.stop, device=device)
    key = torch.arange(keys.start, keys.stop, device=device)
    return (query[:, None] - key).abs() < window
