"""Multi-head latent attention (arXiv:2405.04434) over a cache of latents.

A token stores one latent of R dimensions and a rotated key part of P, for all heads. A head's key is `w_k @ latent`
followed by that part, its value `w_v @ latent`. Single tokens are attended in the latent space itself (`absorbed`):
`q @ (w_k @ latent)` is `(q @ w_k) @ latent`, so that every head reads the cache as it is. Long runs of queries have
the keys and values of their context made once (`expanded`), which costs less per pair of query and key. The Triton
kernel attends in the latent space alone.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch, for_scores
from sirocco.kernels.backend import use_triton
from sirocco.kernels.norm import rms_norm_torch
from sirocco.kernels.rope import rotate_torch

_EXPANDED_BYTES = 64 << 20  # keys and values of as many heads as are made at a time
_SCORE_BYTES = 4 << 20  # scores of one product


def write_latent(latent: Tensor, cache: Tensor, slot_mapping: Tensor, padded: bool = True) -> None:
    """Store latent [T, R + P] in the cache [N, S, R + P], in place, at slot_mapping [T] (block * S + offset).

    A row with a negative slot is padding and is not written. Not `padded`, there is none.
    """
    if padded and bool((slot_mapping < 0).any()):
        rows = (slot_mapping >= 0).nonzero().squeeze(-1)
        latent, slot_mapping = latent[rows], slot_mapping[rows]
    cache.view(-1, cache.shape[-1]).index_copy_(0, slot_mapping, latent.to(cache.dtype))


def norm_rope_write_latent(
    q: Tensor,
    kv: Tensor,
    weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    cache: Tensor,
    slot_mapping: Tensor,
    padded: bool = True,
) -> None:
    """Turn the last P dims of the heads of q [T, H, D + P] and store the latents of kv [T, R + P], both in place.

    The first R dims of kv are normed by weight [R] and the rest is turned like q, as `rotate` does by cos and sin; they
    go to the cache [N, S, R + P] at slot_mapping [T], as in `write_latent`.
    """
    if use_triton(q):
        from sirocco.kernels.triton import mla

        mla.norm_rope_write_latent(q, kv, weight, eps, cos, sin, interleaved, cache, slot_mapping)
    else:
        norm_rope_write_latent_torch(q, kv, weight, eps, cos, sin, interleaved, cache, slot_mapping, padded)


def norm_rope_write_latent_torch(
    q: Tensor,
    kv: Tensor,
    weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    cache: Tensor,
    slot_mapping: Tensor,
    padded: bool = True,
) -> None:
    """The definition of `norm_rope_write_latent`."""
    rank = len(weight)
    turning = q[..., q.shape[2] + rank - kv.shape[1] :]
    parts = torch.cat((turning, kv[:, None, rank:]), 1)  # [T, H + 1, P]
    turned = rotate_torch(parts, cos, sin, interleaved)
    turning.copy_(turned[:, :-1])
    latent = rms_norm_torch(kv[:, :rank], weight, eps)
    write_latent(torch.cat((latent, turned[:, -1]), -1), cache, slot_mapping, padded)


def latent_attention(q: Tensor, w_k: Tensor, w_v: Tensor, cache: Tensor, batch: AttentionBatch, scale: float) -> Tensor:
    """Attend causally from q [T, H, D + P] to the cached context of each request; returns [T, H, Dv] in q.dtype.

    q ends in its rotated part. w_k is [H, D, R], w_v [H, Dv, R]; the cache [N, S, R + P] already holds this step's
    latents. Rows of q past the last request are padding and return zeros. A Triton kernel raises ValueError as
    `check_latent_attention` does.
    """
    if use_triton(q):
        from sirocco.kernels.triton import mla

        return mla.latent_attention(q, w_k, w_v, cache, batch, scale)
    return latent_attention_torch(q, w_k, w_v, cache, batch, scale)


def check_latent_attention(rank: int, rope_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError, naming it, for a latent, rotary part or dtype that a device's kernel cannot do."""
    if use_triton(torch.empty(0, device=device)):
        from sirocco.kernels.triton import mla

        mla.check_latent_attention(rank, rope_dim, dtype)


def latent_attention_torch(
    q: Tensor, w_k: Tensor, w_v: Tensor, cache: Tensor, batch: AttentionBatch, scale: float
) -> Tensor:
    """The definition. Each request goes the way that multiplies less."""
    out = q.new_zeros(len(q), len(w_v), w_v.shape[1])
    absorbed: list[tuple[int, int, int]] = []  # request, first token, number of tokens
    token = 0
    for row, (query_len, kv_len) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
        if _expansion_pays(query_len, kv_len, w_k, w_v):
            rows = slice(token, token + query_len)
            out[rows] = expanded_attention(q[rows], w_k, w_v, _context(cache, batch, row), scale)
        else:
            absorbed.append((row, token, query_len))
        token += query_len
    if not absorbed:
        return out
    contexts = ((count, _context(cache, batch, row)) for row, _, count in absorbed)
    if len(absorbed) == len(batch.query_lens):
        out[:token] = absorbed_attention(q[:token], w_k, w_v, contexts, scale)
    else:
        tokens = torch.cat([torch.arange(first, first + count, device=q.device) for _, first, count in absorbed])
        out[tokens] = absorbed_attention(q[tokens], w_k, w_v, contexts, scale)
    return out


def absorbed_attention(
    q: Tensor, w_k: Tensor, w_v: Tensor, contexts: Iterable[tuple[int, Tensor]], scale: float
) -> Tensor:
    """`latent_attention` in the latent space, from q [T, H, D + P] of requests side by side, as [T, H, Dv].

    contexts gives, for each request in turn, its number of queries n and its context [L, R + P] whose last n tokens
    they are.
    """
    nope_dim, rank = w_k.shape[1:]
    in_latent = torch.bmm(q[..., :nope_dim].transpose(0, 1), w_k).transpose(0, 1)  # [T, H, R]
    queries = torch.cat((in_latent, q[..., nope_dim:]), -1)
    attended = torch.empty_like(in_latent, memory_format=torch.contiguous_format)
    first = 0
    for count, context in contexts:
        rows = slice(first, first + count)
        first += count
        _attend_to_latents(queries[rows], context.to(q.dtype), rank, scale, attended[rows])
    return torch.bmm(attended.transpose(0, 1), w_v.transpose(1, 2)).transpose(0, 1)


def expanded_attention(q: Tensor, w_k: Tensor, w_v: Tensor, context: Tensor, scale: float) -> Tensor:
    """`latent_attention` of one request, from q [n, H, D + P] to its context [L, R + P] whose last n tokens q are."""
    num_heads, rank = len(w_k), w_k.shape[2]
    latent, turned = context[:, :rank].to(q.dtype), context[:, rank:].to(q.dtype)
    head_bytes = len(context) * (q.shape[2] + w_v.shape[1]) * q.element_size()
    at_once = max(1, _EXPANDED_BYTES // head_bytes)
    out = q.new_empty(len(q), num_heads, w_v.shape[1])
    for first in range(0, num_heads, at_once):
        heads = slice(first, first + at_once)
        keys = torch.matmul(latent, w_k[heads].transpose(1, 2))  # [h, L, D]
        keys = torch.cat((keys, turned.expand(len(keys), -1, -1)), -1)
        values = torch.matmul(latent, w_v[heads].transpose(1, 2))
        _causal(q[:, heads].transpose(0, 1), keys, values, scale, out[:, heads].transpose(0, 1))
    return out


def _attend_to_latents(q: Tensor, context: Tensor, rank: int, scale: float, out: Tensor) -> None:
    """Attend from q [n, H, R + P] to the context [L, R + P], keys and values in one; fill out [n, H, R]."""
    (num_queries, num_heads, size), num_keys = q.shape, len(context)
    q, keys = for_scores(q), for_scores(context)
    step = max(1, _SCORE_BYTES // (num_heads * num_keys * 4))
    for first in range(0, num_queries, step):
        rows = slice(first, min(first + step, num_queries))
        count, seen = rows.stop - first, num_keys - num_queries + rows.stop
        scores = torch.mm(q[rows].reshape(-1, size), keys[:seen].T)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
        if count > 1:
            latest = scores.view(count, num_heads, seen)[..., seen - count :]
            latest.masked_fill_(_future(count, q.device)[:, None], -torch.inf)
        out[rows] = torch.mm(scores.softmax(-1).to(context.dtype), context[:seen, :rank]).view(count, num_heads, rank)


def _causal(q: Tensor, keys: Tensor, values: Tensor, scale: float, out: Tensor) -> None:
    """Attend from q [h, n, D] to keys and values [h, L, ...], the last n of which stand where q does; fill out."""
    num_queries, num_keys = q.shape[1], keys.shape[1]
    q, keys = for_scores(q), for_scores(keys)
    step = max(16, _SCORE_BYTES // (len(q) * num_keys * 4))
    for first in range(0, num_queries, step):
        rows = slice(first, min(first + step, num_queries))
        seen = num_keys - num_queries + rows.stop
        scores = torch.bmm(q[:, rows], keys[:, :seen].transpose(1, 2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
        count = rows.stop - first
        scores[..., seen - count :].masked_fill_(_future(count, q.device), -torch.inf)
        out[:, rows] = torch.bmm(scores.softmax(-1).to(values.dtype), values[:, :seen])


def _future(count: int, device: torch.device) -> Tensor:
    """Which of `count` consecutive tokens come after which, [query, key]."""
    return torch.ones(count, count, dtype=torch.bool, device=device).triu(1)


def _expansion_pays(query_len: int, kv_len: int, w_k: Tensor, w_v: Tensor) -> bool:
    """Whether making keys and values costs fewer multiplications than it saves over the pairs of a causal run."""
    (_, nope_dim, rank), value_dim = w_k.shape, w_v.shape[1]
    pairs = query_len * kv_len - query_len * query_len // 2
    return pairs * (2 * rank - nope_dim - value_dim) > kv_len * rank * (nope_dim + value_dim)


def _context(cache: Tensor, batch: AttentionBatch, row: int) -> Tensor:
    """The cached latents [L, R + P] of a request."""
    kv_len = batch.kv_lens[row]
    blocks = batch.block_table[row, : -(-kv_len // cache.shape[1])]
    return cache.index_select(0, blocks.long()).flatten(0, 1)[:kv_len]
