"""Attention of whole sequences to themselves, on either side and without a cache."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.backend import use_triton

_QUERY_TILE = 128  # queries that share a range of keys under a window


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
    distance_bias: Tensor | None = None,
) -> Tensor:
    """Attend from q [T, H, D] to k and v [T, Hkv, D] of the same sequence; returns [T, H, D] in q.dtype.

    The sequences lie side by side with `batch.query_lens` tokens each. A query sees the keys at a distance below
    `window` on either side. To the score of a key at distance d after the query, bounded to -R … R, is added
    `distance_bias[:, R + d]`, [H, 2 R + 1]. A Triton kernel raises ValueError as `check_bidirectional_attention` does;
    elsewhere neighbours of equal length are computed together: sort sequences by length.
    """
    if use_triton(q):
        from sirocco.kernels.triton import bidirectional

        return bidirectional.bidirectional_attention(q, k, v, batch, scale, window, distance_bias)
    return bidirectional_attention_torch(q, k, v, batch, scale, window, distance_bias)


def check_bidirectional_attention(head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError, naming it, for a head dim or dtype that a device's kernel cannot do."""
    if use_triton(torch.empty(0, device=device)):
        from sirocco.kernels.triton import bidirectional

        bidirectional.check_bidirectional_attention(head_dim, dtype)


def bidirectional_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    distance_bias: Tensor | None,
) -> Tensor:
    """The definition."""
    out = torch.empty_like(q)
    start = 0
    for length, run in itertools.groupby(batch.query_lens):
        count = len(list(run))
        rows = slice(start, start + count * length)
        q_run, k_run, v_run, out_run = (
            x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v, out)
        )  # [B, heads, L, D]
        bound = window if window is not None and window < length else None
        for queries, keys in _tiles(length, bound):
            mask = _mask(queries, keys, bound, distance_bias, q)
            out_run[:, :, queries] = F.scaled_dot_product_attention(
                q_run[:, :, queries], k_run[:, :, keys], v_run[:, :, keys], mask, scale=scale, enable_gqa=True
            )
        start = rows.stop
    return out


def _tiles(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Ranges of queries, each with the keys that any of them sees."""
    if window is None:
        yield slice(0, length), slice(0, length)
        return
    for start in range(0, length, _QUERY_TILE):
        stop = min(start + _QUERY_TILE, length)
        yield slice(start, stop), slice(max(0, start - window + 1), min(length, stop + window - 1))


def _mask(queries: slice, keys: slice, window: int | None, bias: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the scores, or which keys are seen; None where all are and nothing is added."""
    if window is None and bias is None:
        return None
    query = torch.arange(queries.start, queries.stop, device=q.device)
    key = torch.arange(keys.start, keys.stop, device=q.device)
    distance = key - query[:, None]
    seen = None if window is None else distance.abs() < window
    if bias is None:
        return seen
    reach = bias.shape[1] // 2
    added = bias.to(q.dtype)[:, distance.clamp(-reach, reach) + reach]
    return added if seen is None else added.masked_fill(~seen, -torch.inf)
