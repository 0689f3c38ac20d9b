# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Latent attention over the paged cache [N, S, R + P] of latents, and the write of a step's latents to it.

All query heads of a token attend to the same latents, which are keys and values in one: a tile's rows are queries times
heads, and a step of the loop reads its latents once for both products. Where the heads are more than a tile's rows they
are dealt to several tiles, evenly; the last may have heads too many, whose results nobody reads.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.attention import (
    DTYPES,
    KERNEL,
    LOG2_E,
    batch_work,
    load_tile,
    merge,
    num_processors,
    precision,
    product,
)
from sirocco.kernels.triton.attention_work import DECODE, ITEM, PREFILL, Work, WorkShape
from sirocco.kernels.triton.common import (
    INTERPRETED,
    Options,
    cdiv,
    launch,
    power_of_two,
    require_dtype,
    tuned,
)
from sirocco.kernels.triton.rope import check_tables, turn

if TYPE_CHECKING:
    from sirocco.kernels.attention import AttentionBatch

MAX_RANK = {2: 512, 4: 128}  # by bytes of the dtype: queries and sums have to find room in registers
MAX_ROPE_DIM = 128
# A program holds as much as a processor has room for, and what a split writes is as much as some hundred of the keys
# that it reads: fewer and longer splits than of other attention. Reasoned, not measured.
PROGRAMS = (2, 2)
MIN_SPLIT = (512, 256)


@dataclass(frozen=True, slots=True)
class LatentShape(WorkShape):
    """How a step is cut, where `num_kv_heads` counts the tiles to which the heads of a query are dealt."""

    def most_splits(self, kind: int) -> int:
        return cdiv(PROGRAMS[kind] * self.num_processors, self.num_kv_heads)

    def min_split(self, kind: int) -> int:
        return MIN_SPLIT[kind]


@triton.jit
def _attend_latents(
    acc, best, total, q, q_turned, q_position, cache_ptr, table_ptr, start, stop, end, scale,
    R: tl.constexpr, P: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr, HOIST: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take keys start … stop into the running softmax; MASKED where a query may not see them all.

    What does not change from step to step, as the addresses of q in shared memory, is kept in registers with HOIST:
    where the sums take most of them there is no room for it.
    """
    BLOCK_M: tl.constexpr = q.shape[0]
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    n = start + tl.arange(0, BLOCK_N)
    block = tl.load(table_ptr + n // S, mask=n < end, other=0)
    for n_start in tl.range(start, stop, BLOCK_N, disable_licm=not HOIST):
        n = n_start + tl.arange(0, BLOCK_N)
        seen = n < end  # a block's slots past the last key hold anything, and a weight of zero does not undo a NaN
        rows = cache_ptr + ((block.to(tl.int64) * S + n % S) * (R + P))[:, None]
        latent = load_tile(rows + r[None, :], seen, r < R, MASKED, BLOCK_R > R)
        turned = load_tile(rows + R + p[None, :], seen, p < P, MASKED, BLOCK_P > P)
        scores = product(q, tl.trans(latent), tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, UPCAST)
        scores = product(q_turned, tl.trans(turned), scores, PRECISION, UPCAST) * scale
        if MASKED:
            scores = tl.where((q_position[:, None] >= n[None, :]) & seen[None, :], scores, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        origin = tl.where(higher == -float("inf"), 0.0, higher) if MASKED else higher
        weights = tl.exp2(scores - origin[:, None])
        fade = tl.exp2(best - origin)
        total = total * fade + tl.sum(weights, 1)
        best = higher
        acc = product(weights.to(q.dtype), latent, acc * fade[:, None], PRECISION, UPCAST)
        # Carried into the next step: as a load of the same step it would take up half of the pipeline's stages.
        block = tl.load(table_ptr + (n + BLOCK_N) // S, mask=n + BLOCK_N < end, other=0)
    return acc, best, total


# The width of a step's table and the rows of its splits vary: they must not ask for variants of the kernel.
@triton.jit(do_not_specialize=["table_stride_b", "part_rows"])
def _latent_attention_kernel(
    q_ptr, q_turned_ptr, cache_ptr, out_ptr, part_ptr, part_lse_ptr, items_ptr, table_ptr,
    q_stride_t, q_stride_h, turned_stride_t, turned_stride_h, table_stride_b, H, head_tiles, part_rows, scale,
    ITEM: tl.constexpr, GROUP: tl.constexpr, R: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, HOIST: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # Programs of the same keys follow each other: all but the first find them in the cache.
    item_ptr = items_ptr + tl.program_id(0) // head_tiles * ITEM
    head_tile = tl.program_id(0) % head_tiles
    num_queries = tl.load(item_ptr + 2)
    if num_queries == 0:
        return  # beyond the items of this step: the grid of a captured launch fits any
    table_row, token, position = tl.load(item_ptr), tl.load(item_ptr + 1), tl.load(item_ptr + 3)
    start, end, slot = tl.load(item_ptr + 4), tl.load(item_ptr + 5), tl.load(item_ptr + 6)

    m, r, p = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    real = m < num_queries * GROUP
    head = head_tile * GROUP + m % GROUP
    token_row = (token + m // GROUP).to(tl.int64)  # token_row * stride outgrows int32
    has_q = real & (head < H)
    q_ptrs = q_ptr + (token_row * q_stride_t + head * q_stride_h)[:, None]
    turned_ptrs = q_turned_ptr + (token_row * turned_stride_t + head * turned_stride_h)[:, None]
    q = load_tile(q_ptrs + r[None, :], has_q, r < R, True, BLOCK_R > R)
    q_turned = load_tile(turned_ptrs + p[None, :], has_q, p < P, True, BLOCK_P > P)
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    # All queries see the first keys; from the first query's own on they need masks.
    q_position = position + m // GROUP
    table_ptr += table_row.to(tl.int64) * table_stride_b
    after = start + tl.maximum(tl.minimum(end, position + 1) - start, 0) // BLOCK_N * BLOCK_N
    acc, best, total = _attend_latents(
        acc, best, total, q, q_turned, q_position, cache_ptr, table_ptr, start, after, end, scale,
        R, P, S, BLOCK_N, BLOCK_R, BLOCK_P, HOIST, False, PRECISION, UPCAST,
    )  # fmt: skip
    acc, best, total = _attend_latents(
        acc, best, total, q, q_turned, q_position, cache_ptr, table_ptr, after, end, end, scale,
        R, P, S, BLOCK_N, BLOCK_R, BLOCK_P, HOIST, True, PRECISION, UPCAST,
    )  # fmt: skip

    total = tl.where(total == 0.0, 1.0, total)  # without keys
    values = acc * (1.0 / total)[:, None]
    stored = real[:, None] & (r < R)[None, :]
    if slot < 0:
        out_row = token_row * head_tiles * GROUP + head
        tl.store(out_ptr + (out_row * R)[:, None] + r[None, :], values.to(out_ptr.dtype.element_ty), stored)
    else:
        part_row = (slot.to(tl.int64) * head_tiles + head_tile) * part_rows + m
        tl.store(part_lse_ptr + part_row, best + tl.log2(total), real)
        tl.store(part_ptr + (part_row * R)[:, None] + r[None, :], values, stored)


@triton.jit(do_not_specialize_on_alignment=["slot_mapping_ptr"])
def _norm_rope_write_latent_kernel(
    q_ptr, kv_ptr, weight_ptr, cos_ptr, sin_ptr, cache_ptr, slot_mapping_ptr,
    q_stride_t, q_stride_h, kv_stride_t, table_stride_t, H, D, R, P, num_pairs, eps,
    INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A program takes a token's latent, or some of its query heads."""
    t = tl.program_id(0).to(tl.int64)  # t * stride outgrows int32
    cos_ptr += t * table_stride_t
    sin_ptr += t * table_stride_t
    if tl.program_id(1) == 0:
        slot = tl.load(slot_mapping_ptr + t).to(tl.int64)
        if slot < 0:
            return
        kv_ptr += t * kv_stride_t
        cache_ptr += slot * (R + P)
        r = tl.arange(0, BLOCK_R)
        x = tl.load(kv_ptr + r, mask=r < R, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + r, mask=r < R, other=0.0).to(tl.float32)
        latent = x * tl.rsqrt(tl.sum(x * x) / R + eps) * weight
        tl.store(cache_ptr + r, latent.to(cache_ptr.dtype.element_ty), mask=r < R)
        p = tl.arange(0, BLOCK_P)
        partner, cos, sin = turn(cos_ptr, sin_ptr, p, 2 * num_pairs, INTERLEAVED)
        key = tl.load(kv_ptr + R + p, mask=p < P, other=0.0).to(tl.float32)
        other = tl.load(kv_ptr + R + partner, mask=p < 2 * num_pairs, other=0.0).to(tl.float32)
        tl.store(cache_ptr + R + p, (key * cos + other * sin).to(cache_ptr.dtype.element_ty), mask=p < P)
        return
    # In place: a pair's two halves are read and written by one thread.
    h = (tl.program_id(1) - 1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    pair = tl.arange(0, BLOCK_P // 2)[None, :]
    mask = (h < H) & (pair < num_pairs)
    first_ptrs = q_ptr + t * q_stride_t + h * q_stride_h + D + (2 * pair if INTERLEAVED else pair)
    second_ptrs = first_ptrs + (1 if INTERLEAVED else num_pairs)
    first = tl.load(first_ptrs, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(second_ptrs, mask=mask, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + pair, mask=pair < num_pairs, other=1.0)
    sin = tl.load(sin_ptr + pair, mask=pair < num_pairs, other=0.0)
    tl.store(first_ptrs, (first * cos - second * sin).to(q_ptr.dtype.element_ty), mask=mask)
    tl.store(second_ptrs, (second * cos + first * sin).to(q_ptr.dtype.element_ty), mask=mask)


def check_latent_attention(rank: int, rope_dim: int, dtype: torch.dtype) -> None:
    """Raise ValueError for a rank, rotary part or dtype without a kernel."""
    if dtype not in DTYPES:
        raise ValueError(f"latent attention has no kernel for {dtype}: float32, float16 or bfloat16")
    most = MAX_RANK[dtype.itemsize]
    if not 1 <= rank <= most:
        raise ValueError(f"latent attention has no kernel for a kv_lora_rank of {rank} in {dtype}: 1 to {most}")
    if not 1 <= rope_dim <= MAX_ROPE_DIM:
        raise ValueError(f"latent attention has no kernel for a qk_rope_head_dim of {rope_dim}: 1 to {MAX_ROPE_DIM}")


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
) -> None:
    """As `sirocco.kernels.mla.norm_rope_write_latent`; negative slots are seen on the device, so nothing waits for it.

    ValueError for other dtypes than 2- and 4-byte floats, and for shapes and strides that do not fit each other.
    """
    require_dtype("norm_rope_write_latent", q, kv, weight, cache)
    num_tokens, num_heads, head_dim = q.shape
    rank, size = len(weight), kv.shape[1]
    rope_dim = size - rank
    if not 0 < rope_dim <= head_dim or cache.shape[2] != size or len(kv) != num_tokens:
        raise ValueError(
            f"queries {tuple(q.shape)}, latents {tuple(kv.shape)}, a cache {tuple(cache.shape)} and a norm of {rank} "
            "do not fit each other"
        )
    if q.stride(2) != 1 or kv.stride(1) != 1 or not weight.is_contiguous() or not cache.is_contiguous():
        raise ValueError("norm_rope_write_latent needs adjacent channels and a contiguous cache")
    if slot_mapping.shape != (num_tokens,) or slot_mapping.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{num_tokens} tokens need as many int32 or int64 slots, not {tuple(slot_mapping.shape)}")
    check_tables(cos, sin, num_tokens, rope_dim)
    if not num_tokens:
        return
    options = tuned("mla", "norm_rope_write_latent", rank)
    launch(
        _norm_rope_write_latent_kernel,
        (num_tokens, 1 + cdiv(num_heads, options["BLOCK_H"])),
        *(q, kv, weight, cos, sin, cache, slot_mapping),
        *(q.stride(0), q.stride(1), kv.stride(0), cos.stride(0)),
        *(num_heads, head_dim - rope_dim, rank, rope_dim, cos.shape[1], eps),
        INTERLEAVED=interleaved,
        BLOCK_R=power_of_two(rank),
        BLOCK_P=max(2, power_of_two(rope_dim)),
        **options,
    )


def latent_attention(
    q: Tensor, w_k: Tensor, w_v: Tensor, cache: Tensor, batch: "AttentionBatch", scale: float
) -> Tensor:
    """`sirocco.kernels.mla.latent_attention`, in the latent space; raises ValueError as `check_latent_attention`."""
    num_tokens, num_heads, _ = q.shape
    nope_dim, rank = w_k.shape[1:]
    check_latent_attention(rank, cache.shape[2] - rank, q.dtype)
    if q.stride(2) != 1 or not cache.is_contiguous() or cache.dtype != q.dtype:
        raise ValueError(f"latent attention needs adjacent channels of q and a contiguous cache of {q.dtype}")
    in_latent = q.new_empty(num_tokens, num_heads, rank)
    torch.bmm(q[..., :nope_dim].transpose(0, 1), w_k, out=in_latent.transpose(0, 1))
    attended = attend(in_latent, q[..., nope_dim:], cache, batch, scale)
    out = q.new_empty(num_tokens, num_heads, w_v.shape[1])
    torch.bmm(attended.transpose(0, 1), w_v.transpose(1, 2), out=out.transpose(0, 1))
    return out


def attend(q: Tensor, q_turned: Tensor, cache: Tensor, batch: "AttentionBatch", scale: float) -> Tensor:
    """Attend from q [T, H, R] and its rotated part [T, H, P] to the cached latents; returns weighted latents [T, H, R].

    Rows of q past the last request return zeros.
    """
    num_tokens, num_heads, rank = q.shape
    shape = latent_shape(num_heads, q.dtype, q.device)
    padded = num_tokens > sum(batch.query_lens)
    make = q.new_zeros if padded else q.new_empty
    out = make(num_tokens, shape.num_kv_heads * shape.group, rank)
    for work in batch_work(batch, shape, q.device):
        _launch(work, shape, q, q_turned, cache, out, batch.block_table, scale)
    return out[:, :num_heads]


@functools.cache
def latent_shape(num_heads: int, dtype: torch.dtype, device: torch.device) -> LatentShape:
    """How a step is cut for a layer; heads fill the smaller of its tiles."""
    options = [_options(kind, num_heads, dtype) for kind in (PREFILL, DECODE)]
    rows, keys = ((options[0][name], options[1][name]) for name in ("BLOCK_M", "BLOCK_N"))
    head_tiles = cdiv(num_heads, min(rows))
    group = cdiv(num_heads, head_tiles)
    return LatentShape(group, cdiv(num_heads, group), None, rows, keys, num_processors(device))


def _options(kind: int, num_heads: int, dtype: torch.dtype) -> Options:
    return tuned("mla", f"{KERNEL[kind]}_{8 * dtype.itemsize}", num_heads)


def _launch(
    work: Work,
    shape: LatentShape,
    q: Tensor,
    q_turned: Tensor,
    cache: Tensor,
    out: Tensor,
    block_table: Tensor,
    scale: float,
) -> None:
    (_, num_heads, rank), rope_dim = q.shape, q_turned.shape[2]
    part = torch.empty(work.slots, shape.num_kv_heads, work.rows, rank, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(work.slots, shape.num_kv_heads, work.rows, dtype=torch.float32, device=q.device)
    launch(
        _latent_attention_kernel,
        (len(work.items) * shape.num_kv_heads,),
        *(q, q_turned, cache, out, part, part_lse, work.items, block_table),
        *(*q.stride()[:2], *q_turned.stride()[:2], block_table.stride(0)),
        *(num_heads, shape.num_kv_heads, work.rows, scale * LOG2_E.value),
        ITEM=ITEM,
        GROUP=shape.group,
        R=rank,
        P=rope_dim,
        S=cache.shape[1],
        BLOCK_R=max(16, power_of_two(rank)),
        BLOCK_P=max(16, power_of_two(rope_dim)),
        PRECISION=precision(),
        UPCAST=INTERPRETED,
        **_options(work.kind, num_heads, q.dtype),
    )
    merge(work, part, part_lse, out, None, shape.group)
