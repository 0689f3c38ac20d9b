"""Attention over the paged cache, for any mix of prompt chunks and single tokens.

Everything is a tile: a run of n queries of one request against the blocks that they can see. Tiles of one shape from
several requests are multiplied as one batch, of [pairs, n * G, D] against [pairs, L, D], where a pair is a tile with
one KV head and the G query heads that share it. Single tokens are tiles with n = 1. The indices of the tiles are worked
out once a step and shared by its layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sirocco.kernels.backend import use_native, use_triton
from sirocco.kernels.native import ops as native

_KEY_BYTES = 1 << 20  # gathered keys of one product: they and the values should still be in L2 when they are multiplied
_SCORE_BYTES = (
    4 << 20
)  # scores of one product; beyond some 16 MiB each allocation pays page faults, 6x the softmax itself
_QUERY_ROWS = 256  # n * G of a full tile of a prompt chunk
_GROUPED_ROWS = 32  # n * G up to which tiles are padded so that unequal lengths can share a product


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBatch:
    """Where the tokens of one step stand: B requests side by side, each with its cached context.

    `seq_lens` and `kv_lens` count a request's cached tokens with this step's; the lists are host copies of the tensors.
    A static batch is replayed by a captured graph: its tensors stay and `refill` follows its lists.
    """

    cu_seqlens_q: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32
    block_table: Tensor  # [B, P] int32
    query_lens: list[int]
    kv_lens: list[int]
    static: bool = False
    invariant: bool = False  # how a request's keys are split depends on its own length alone
    work: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # of the Triton kernels, by layer shape
    _parts: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # with and without flash-attn
    _tiles: dict[tuple[int, ...], "list[_TileBatch]"] = field(default_factory=dict, init=False, repr=False)
    _lens: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def host_lens(self) -> Tensor:
        """`query_lens` and `kv_lens` as one tensor [2, B] int64 on the host."""
        if not self._lens:
            self._lens.append(torch.tensor([self.query_lens, self.kv_lens]))
        return self._lens[0]


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend causally from q [T, H, D] to the cached context of each request; returns [T, H, D] in q.dtype.

    The caches [N, Hkv, S, D] are contiguous and already hold this step's keys and values. Query i of a request stands
    at position seq_len - query_len + i and sees keys with 0 <= distance < window. Scores are scale * q k, then
    softcap * tanh(score / softcap); sinks [H] add one logit per head to the softmax's denominator alone. Rows of q past
    the last request are padding and return zeros. A Triton kernel raises ValueError as `check_attention` does.
    """
    if use_triton(q):
        return _on_gpu(q, k_cache, v_cache, batch, scale, window, softcap, sinks)
    if use_native(q) and k_cache.dtype is q.dtype and len(q) == sum(batch.query_lens) and q.shape[2] % 2 == 0:
        return native.paged_attention(
            q, k_cache, v_cache, batch.host_lens(), batch.block_table, scale, window, softcap, sinks
        )
    return paged_attention_torch(q, k_cache, v_cache, batch, scale, window, softcap, sinks)


def _on_gpu(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """flash-attn for the long chunks at the end of a step where that is faster, our kernels for the rest."""
    from sirocco.kernels import flash
    from sirocco.kernels.triton import attention  # triton is absent on macOS

    parts = None
    if sinks is None and not (batch.static or batch.invariant):
        key = (q.shape[2], q.dtype, k_cache.shape[2])
        if key not in batch._parts:
            batch._parts[key] = _split(batch, flash.plan(q, k_cache.shape[2], batch))
        parts = batch._parts[key]
    if parts is None:
        return attention.paged_attention(q, k_cache, v_cache, batch, scale, window, softcap, sinks)
    rest, prefill = parts
    done: Tensor = prefill.attend(q[prefill.token :], k_cache, v_cache, scale, window, softcap)
    if not prefill.token:
        return done
    first = attention.paged_attention(q[: prefill.token], k_cache, v_cache, rest, scale, window, softcap, None)
    return torch.cat([first, done])


def _split(batch: AttentionBatch, prefill: Any) -> tuple[AttentionBatch, Any] | None:
    """The rows before a prefill, and it."""
    if prefill is None:
        return None
    row = prefill.row
    rest = AttentionBatch(
        batch.cu_seqlens_q[: row + 1],
        batch.seq_lens[:row],
        batch.block_table[:row],
        batch.query_lens[:row],
        batch.kv_lens[:row],
    )
    return rest, prefill


def refill(batch: AttentionBatch) -> None:
    """Bring what was made for a static batch in line with its lists, in place and without waiting for the device."""
    batch._tiles.clear()
    batch._lens.clear()
    if batch.work:
        from sirocco.kernels.triton import attention

        attention.refill(batch)


def check_attention(head_dim: int, dtype: torch.dtype, block_size: int, device: torch.device, group: int = 1) -> None:
    """Raise ValueError, naming it, for a head dim, dtype, block size or group that attention cannot do on a device.

    `group` is the number of query heads that share a KV head.
    """
    if use_triton(torch.empty(0, device=device)):
        from sirocco.kernels.triton import attention

        attention.check_attention(head_dim, dtype, block_size, group)


def paged_attention_torch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The definition."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[1]
    group = num_heads // num_kv_heads
    rows = q.reshape(num_tokens * num_kv_heads, group * head_dim)
    out = torch.zeros_like(rows) if num_tokens > sum(batch.query_lens) else torch.empty_like(rows)
    k_blocks, v_blocks = k_cache.view(-1, k_cache.stride(1)), v_cache.view(-1, v_cache.stride(1))  # [N * Hkv, S * D]
    head_sinks = None if sinks is None else sinks.view(num_kv_heads, 1, group)
    for tiles in _tiles(batch, k_cache, group, window):
        out.index_copy_(0, tiles.q_rows, tiles.attend(rows, k_blocks, v_blocks, head_dim, scale, softcap, head_sinks))
    return out.view(num_tokens, num_heads, head_dim)


def for_scores(x: Tensor) -> Tensor:
    """Queries or keys as their products are taken: those of float16 could overflow, and are in the thousands rounded to
    whole numbers."""
    return x.float() if x.dtype is torch.float16 else x


@dataclass(frozen=True, slots=True, eq=False)
class _TileBatch:
    """Tiles of one shape, n queries against L keys: X tiles with a range of KV heads; M = X * heads pairs."""

    num_tiles: int
    heads: slice
    num_queries: int
    q_rows: Tensor  # [M * n] rows of q as [T * Hkv, G * D]
    cache_rows: Tensor  # [M * L / S] rows of the cache as [N * Hkv, S * D]
    dead: Tensor | None  # [X, 1, n, 1, W] which of the last W keys a query does not see
    unread: Tensor | None  # indices into [M * L] of the keys that no query sees

    def attend(
        self,
        q: Tensor,
        k_blocks: Tensor,
        v_blocks: Tensor,
        head_dim: int,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Return the outputs [M * n, G * D] of this batch's pairs."""
        group = q.shape[-1] // head_dim
        num_pairs = len(self.q_rows) // self.num_queries
        queries = q.index_select(0, self.q_rows).view(num_pairs, -1, head_dim)  # [M, n * G, D]
        keys = k_blocks.index_select(0, self.cache_rows).view(num_pairs, -1, head_dim)  # [M, L, D]
        # Plain bmm because it won (bf16, 8 KV heads, G = 2, D = 128, AVX-512): 220 us against 255 of SDPA with the same
        # folding for one token on 1024 keys (2 threads), 136 GF/s against 80 for 128 queries on 2048 (1 thread). Its
        # scores are rounded to bf16, which doubles the error (4e-3 to SDPA's 2e-3, relative); float32 products would
        # take 1.5 to 2.5 times as long.
        scores = torch.bmm(for_scores(queries), for_scores(keys.to(queries.dtype)).transpose(1, 2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        by_head = scores.view(self.num_tiles, -1, self.num_queries, group, keys.shape[1])
        if self.dead is not None:
            by_head[..., -self.dead.shape[-1] :].masked_fill_(self.dead, -torch.inf)
        weights = torch.softmax(scores, -1).to(queries.dtype)
        values = v_blocks.index_select(0, self.cache_rows).view(-1, head_dim)
        if self.unread is not None:
            values.index_fill_(0, self.unread, 0)  # a stale NaN times a weight of zero is NaN
        out = torch.bmm(weights, values.to(queries.dtype).view(num_pairs, -1, head_dim))
        if sinks is not None:
            kept = torch.sigmoid(by_head.logsumexp(-1) - sinks[self.heads])  # Z / (Z + exp(sink)), [X, heads, n, G]
            out = (out * kept.view(num_pairs, -1, 1)).to(out.dtype)
        return out.view(-1, group * head_dim)


def _tiles(batch: AttentionBatch, k_cache: Tensor, group: int, window: int | None) -> "list[_TileBatch]":
    key = (group, *k_cache.shape[1:], k_cache.element_size(), window or 0)
    tiles = batch._tiles.get(key)
    if tiles is None:
        tiles = batch._tiles[key] = list(_plan(batch, k_cache, group, window))
    return tiles


@dataclass(frozen=True, slots=True)
class _Tile:
    """n queries of one request and the blocks that they can see."""

    row: int
    token: int  # first query's row of q
    position: int  # and its position
    first_block: int
    num_blocks: int


def _plan(batch: AttentionBatch, k_cache: Tensor, group: int, window: int | None) -> Iterator[_TileBatch]:
    """Group the step's tiles by shape and cut the groups to the workspace."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    by_shape: dict[tuple[int, int], list[_Tile]] = {}
    for num_queries, tile in _cut(batch, max(1, _QUERY_ROWS // group), block_size, window):
        grouped = num_queries * group <= _GROUPED_ROWS
        num_blocks = _padded(tile.num_blocks) if grouped else tile.num_blocks
        by_shape.setdefault((num_queries, num_blocks), []).append(tile)
    for (num_queries, num_blocks), tiles in by_shape.items():
        num_keys = num_blocks * block_size
        num_pairs = min(
            _KEY_BYTES // (num_keys * head_dim * k_cache.element_size()),
            _SCORE_BYTES // (num_keys * num_queries * group * 4),
        )
        group_tiles = _index(tiles, num_queries, num_blocks, batch, k_cache, window)
        at_once, heads_at_once = max(1, num_pairs // num_kv_heads), min(num_kv_heads, max(1, num_pairs))
        for i in range(0, len(tiles), at_once):
            for head in range(0, num_kv_heads, heads_at_once):
                heads = slice(head, min(head + heads_at_once, num_kv_heads))
                yield group_tiles.take(slice(i, min(i + at_once, len(tiles))), heads)


def _cut(batch: AttentionBatch, max_queries: int, block_size: int, window: int | None) -> Iterator[tuple[int, _Tile]]:
    token = 0
    for row, (query_len, kv_len) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
        for i in range(0, query_len, max_queries):
            num_queries = min(max_queries, query_len - i)
            position = kv_len - query_len + i
            first_block = 0 if window is None else max(0, position - window + 1) // block_size
            num_blocks = -(-(position + num_queries) // block_size) - first_block
            yield num_queries, _Tile(row, token + i, position, first_block, num_blocks)
        token += query_len


def _padded(num_blocks: int) -> int:
    """Round up to one of four sizes an octave: a tile's shape, and so its sums, depend on its own length alone."""
    step = 1 << max(0, (num_blocks - 1).bit_length() - 3)
    return -(-num_blocks // step) * step


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """All X tiles of one shape, with all heads."""

    q_rows: Tensor  # [X, Hkv, n]
    cache_rows: Tensor  # [X, Hkv, L / S]
    dead: Tensor  # [X, n, W]
    unread: Tensor  # [X, L]

    def take(self, tiles: slice, heads: slice) -> _TileBatch:
        num_tiles, num_heads = tiles.stop - tiles.start, heads.stop - heads.start
        unread = self.unread[tiles, None].expand(-1, num_heads, -1).flatten().nonzero().squeeze(-1)
        return _TileBatch(
            num_tiles,
            heads,
            self.q_rows.shape[-1],
            self.q_rows[tiles, heads].flatten(),
            self.cache_rows[tiles, heads].flatten(),
            self.dead[tiles, None, :, None] if self.dead.shape[-1] else None,
            unread if len(unread) else None,
        )


def _index(
    tiles: list[_Tile], num_queries: int, num_blocks: int, batch: AttentionBatch, k_cache: Tensor, window: int | None
) -> _Shape:
    _, num_kv_heads, block_size, _ = k_cache.shape
    device, num_keys = k_cache.device, num_blocks * block_size
    columns = [[t.row, t.token, t.position, t.first_block, t.num_blocks] for t in tiles]
    row, token, position, first_block, length = torch.tensor(columns, device=device).T[..., None]  # each [X, 1]
    head = torch.arange(num_kv_heads, device=device)[:, None]
    query = torch.arange(num_queries, device=device)
    block = torch.arange(num_blocks, device=device).minimum(length - 1) + first_block  # padding repeats the last
    cache_rows = batch.block_table[row, block].long()[:, None] * num_kv_heads + head
    q_rows = (token + query)[:, None] * num_kv_heads + head

    # Without a window, whatever does not lie beyond the first query of any tile is seen by all.
    seen = 0 if window is not None else min(t.position for t in tiles) + 1
    key_position = first_block * block_size + torch.arange(seen, num_keys, device=device)  # [X, W]
    distance = (position + query)[..., None] - key_position[:, None]  # [X, n, W]
    dead = distance < 0 if window is None else (distance < 0) | (distance >= window)
    unread = torch.zeros(len(tiles), num_keys, dtype=torch.bool, device=device)
    unread[:, seen:] = dead.all(1)
    return _Shape(q_rows, cache_rows, dead, unread)
