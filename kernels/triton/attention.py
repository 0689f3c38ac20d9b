# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Paged attention: tiles of queries against splits of keys with a running softmax, then a merge of the splits.

Rows of a tile are queries times the query heads of one KV head, so that a decode of grouped heads reads its keys once.
The keys of one step of the loop are gathered from as many cache blocks as they lie in. A head dim that is no power of
two is multiplied in two parts (80 as 64 and 16) where that is less than padding.
"""

import functools
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sirocco.kernels.triton.attention_work import DECODE, ITEM, MERGE, PREFILL, Work, WorkShape, cut
from sirocco.kernels.triton.common import INTERPRETED, Options, device_key, launch, power_of_two, tuned

if TYPE_CHECKING:
    from sirocco.kernels.attention import AttentionBatch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = range(16, 257, 8)
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
MAX_GROUP = 128  # query heads of one KV head: they are rows of one tile
NO_WINDOW = 1 << 30
LOG2_E = tl.constexpr(1.4426950408889634)
MERGE_AT_ONCE = 4096  # float32 of results: of 256 dims 16 splits
KERNEL = {PREFILL: "prefill", DECODE: "decode"}


@triton.jit
def load_tile(ptrs, rows, cols, MASK_ROWS: tl.constexpr, MASK_COLS: tl.constexpr):
    """Load [rows, cols] of 0 where masked; what need not be masked is loaded without, in wider pieces."""
    if MASK_ROWS and MASK_COLS:
        return tl.load(ptrs, mask=rows[:, None] & cols[None, :], other=0.0)
    elif MASK_ROWS:
        return tl.load(ptrs, mask=rows[:, None], other=0.0)
    elif MASK_COLS:
        return tl.load(ptrs, mask=cols[None, :], other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """a @ b + acc. The interpreter multiplies the bits of bfloat16, so it wants UPCAST."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _attend(
    acc, acc_tail, best, total, q, q_tail, q_position, k_ptr, v_ptr, table_ptr,
    start, stop, first, end, window, head, num_kv_heads, scale, softcap,
    D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Take keys start … stop into the running softmax; MASKED where a query may not see them all."""
    BLOCK_M: tl.constexpr = q.shape[0]
    d = tl.arange(0, BLOCK_D)
    n = start + tl.arange(0, BLOCK_N)
    if DESCRIPTORS:
        block = tl.load(table_ptr + tl.maximum(tl.minimum(start, end - 1), 0) // S)
    else:
        block = tl.load(table_ptr + n // S, mask=(n >= first) & (n < end), other=0)
    for n_start in range(start, stop, BLOCK_N):
        n = n_start + tl.arange(0, BLOCK_N)
        seen = (n >= first) & (n < end)  # a freed block holds anything, so what nobody sees is not read
        if DESCRIPTORS:
            row = (block * num_kv_heads + head) * S + n_start % S
            k = k_ptr.load([row, 0])
        else:
            rows = (block.to(tl.int64) * num_kv_heads + head) * S + n % S  # of the cache as [N * Hkv * S, D]
            k = load_tile(k_ptr + rows[:, None] * D + d[None, :], seen, d < D, MASKED, BLOCK_D > D)
        scores = product(q, tl.trans(k.to(q.dtype)), tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, UPCAST)
        if TAIL:
            d_tail = BLOCK_D + tl.arange(0, TAIL)
            k_tail = load_tile(
                k_ptr + rows[:, None] * D + d_tail[None, :], seen, d_tail < D, MASKED, BLOCK_D + TAIL > D
            )
            scores = product(q_tail, tl.trans(k_tail.to(q.dtype)), scores, PRECISION, UPCAST)
        scores = scores * scale
        if SOFTCAP:
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))  # tanh, of what `scale` makes 2 log2(e) x
        if MASKED:
            distance = q_position[:, None] - n[None, :]
            scores = tl.where((distance >= 0) & (distance < window) & seen[None, :], scores, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        origin = tl.where(higher == -float("inf"), 0.0, higher) if MASKED else higher
        weights = tl.exp2(scores - origin[:, None])
        fade = tl.exp2(best - origin)
        total = total * fade + tl.sum(weights, 1)
        best = higher
        if DESCRIPTORS:
            v = v_ptr.load([row, 0])
            if MASKED:
                v = tl.where(seen[:, None], v, 0.0)  # a stale NaN times a weight of zero is NaN
        else:
            v = load_tile(v_ptr + rows[:, None] * D + d[None, :], seen, d < D, MASKED, BLOCK_D > D)
        weights = weights.to(q.dtype)
        acc = product(weights, v.to(q.dtype), acc * fade[:, None], PRECISION, UPCAST)
        if TAIL:
            v_tail = load_tile(
                v_ptr + rows[:, None] * D + d_tail[None, :], seen, d_tail < D, MASKED, BLOCK_D + TAIL > D
            )
            acc_tail = product(weights, v_tail.to(q.dtype), acc_tail * fade[:, None], PRECISION, UPCAST)
        # Carried into the next step: as a load of the same step it would take up half of the pipeline's stages.
        if DESCRIPTORS:
            block = tl.load(table_ptr + tl.minimum(n_start + BLOCK_N, end - 1) // S)
        else:
            block = tl.load(table_ptr + (n + BLOCK_N) // S, mask=n + BLOCK_N < end, other=0)
    return acc, acc_tail, best, total


# The width of a step's table and the rows of its splits vary: they must not ask for variants of the kernel.
@triton.jit(do_not_specialize=["table_stride_b", "part_rows"])
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, part_lse_ptr, sinks_ptr, items_ptr, table_ptr,
    q_stride_t, q_stride_h, table_stride_b, num_kv_heads, part_rows, window, scale, softcap,
    ITEM: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    item_ptr = items_ptr + tl.program_id(0) * ITEM
    num_queries = tl.load(item_ptr + 2)
    if num_queries == 0:
        return  # beyond the items of this step: the grid of a captured launch fits any
    head = tl.program_id(1)
    table_row, token, position = tl.load(item_ptr), tl.load(item_ptr + 1), tl.load(item_ptr + 3)
    first, end, slot = tl.load(item_ptr + 4), tl.load(item_ptr + 5), tl.load(item_ptr + 6)

    r, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    d_tail = BLOCK_D + tl.arange(0, TAIL if TAIL else 16)
    real = r < num_queries * GROUP
    q_head = head * GROUP + r % GROUP
    q_row = (token + r // GROUP).to(tl.int64)  # q_row * stride outgrows int32
    q_ptrs = q_ptr + (q_row * q_stride_t + q_head * q_stride_h)[:, None]
    q = load_tile(q_ptrs + d[None, :], real, d < D, True, BLOCK_D > D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if TAIL:
        q_tail = load_tile(q_ptrs + d_tail[None, :], real, d_tail < D, True, BLOCK_D + TAIL > D)
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    else:
        q_tail, acc_tail = best, best  # never touched

    # All queries see the keys of the middle; before and after it they need masks.
    q_position = position + r // GROUP
    start = first // BLOCK_N * BLOCK_N
    after = start + tl.maximum(tl.minimum(end, position + 1) - start, 0) // BLOCK_N * BLOCK_N
    table_ptr += table_row.to(tl.int64) * table_stride_b
    middle = start
    if WINDOW:
        unseen = tl.maximum(position + num_queries - window, first)  # the last query sees no key before it
        middle += tl.minimum(tl.cdiv(unseen - start, BLOCK_N), tl.cdiv(end - start, BLOCK_N)) * BLOCK_N
        acc, acc_tail, best, total = _attend(
            acc, acc_tail, best, total, q, q_tail, q_position, k_ptr, v_ptr, table_ptr,
            start, middle, first, end, window, head, num_kv_heads, scale, softcap,
            D, S, BLOCK_N, BLOCK_D, TAIL, SOFTCAP, DESCRIPTORS, True, PRECISION, UPCAST,
        )  # fmt: skip
    acc, acc_tail, best, total = _attend(
        acc, acc_tail, best, total, q, q_tail, q_position, k_ptr, v_ptr, table_ptr,
        middle, after, first, end, window, head, num_kv_heads, scale, softcap,
        D, S, BLOCK_N, BLOCK_D, TAIL, SOFTCAP, DESCRIPTORS, False, PRECISION, UPCAST,
    )  # fmt: skip
    acc, acc_tail, best, total = _attend(
        acc, acc_tail, best, total, q, q_tail, q_position, k_ptr, v_ptr, table_ptr,
        tl.maximum(middle, after), end, first, end, window, head, num_kv_heads, scale, softcap,
        D, S, BLOCK_N, BLOCK_D, TAIL, SOFTCAP, DESCRIPTORS, True, PRECISION, UPCAST,
    )  # fmt: skip

    if slot < 0:
        if SINKS:
            total += tl.exp2(tl.load(sinks_ptr + q_head).to(tl.float32) * LOG2_E - best)
        norm = 1.0 / tl.where(total == 0.0, 1.0, total)  # without keys and sinks
        out_ptrs = out_ptr + ((q_row * num_kv_heads * GROUP + q_head) * D)[:, None]
        tl.store(
            out_ptrs + d[None, :], (acc * norm[:, None]).to(out_ptr.dtype.element_ty), real[:, None] & (d < D)[None, :]
        )
        if TAIL:
            values = (acc_tail * norm[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out_ptrs + d_tail[None, :], values, real[:, None] & (d_tail < D)[None, :])
    else:
        total = tl.where(total == 0.0, 1.0, total)
        norm = 1.0 / total
        part_row = (slot.to(tl.int64) * num_kv_heads + head) * part_rows + r
        part_ptrs = part_ptr + (part_row * D)[:, None]
        tl.store(part_lse_ptr + part_row, best + tl.log2(total), real)
        tl.store(part_ptrs + d[None, :], acc * norm[:, None], real[:, None] & (d < D)[None, :])
        if TAIL:
            tl.store(part_ptrs + d_tail[None, :], acc_tail * norm[:, None], real[:, None] & (d_tail < D)[None, :])


@triton.jit(do_not_specialize=["part_rows"])
def _merge_kernel(
    part_ptr, part_lse_ptr, out_ptr, sinks_ptr, merges_ptr, num_kv_heads, part_rows,
    MERGE: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    merge_ptr = merges_ptr + tl.program_id(0) * MERGE
    num_queries = tl.load(merge_ptr + 1)
    head, r = tl.program_id(1), tl.program_id(2)
    if r >= num_queries * GROUP:
        return
    token, first_slot, num_splits = tl.load(merge_ptr), tl.load(merge_ptr + 2), tl.load(merge_ptr + 3)
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    best = -float("inf")
    total = 0.0
    for s_start in range(0, num_splits, BLOCK_S):
        s = s_start + tl.arange(0, BLOCK_S)
        rows = ((first_slot + s).to(tl.int64) * num_kv_heads + head) * part_rows + r
        lse = tl.load(part_lse_ptr + rows, mask=s < num_splits, other=-float("inf"))
        parts = tl.load(part_ptr + rows[:, None] * D + d[None, :], (s < num_splits)[:, None] & (d < D)[None, :], 0.0)
        higher = tl.maximum(best, tl.max(lse, 0))
        origin = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(lse - origin)
        fade = tl.exp2(best - origin)
        acc = acc * fade + tl.sum(parts * weights[:, None], 0)
        total = total * fade + tl.sum(weights, 0)
        best = higher
    q_head = head * GROUP + r % GROUP
    if SINKS:
        total += tl.exp2(tl.load(sinks_ptr + q_head).to(tl.float32) * LOG2_E - best)
    row = (token + r // GROUP).to(tl.int64) * num_kv_heads * GROUP + q_head
    out = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * D + d, out.to(out_ptr.dtype.element_ty), d < D)


def check_attention(head_dim: int, dtype: torch.dtype, block_size: int, group: int = 1) -> None:
    """Raise ValueError for a head dim, dtype, cache block size or number of query heads a KV head without a kernel."""
    if dtype not in DTYPES:
        raise ValueError(f"attention has no kernel for {dtype}: float32, float16 or bfloat16")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"attention has no kernel for a head_dim of {head_dim}: a multiple of 8 from 16 to 256")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"attention has no kernel for a block_size of {block_size}: a power of two from 8 to 256")
    if not 1 <= group <= MAX_GROUP:
        raise ValueError(f"attention has no kernel for {group} query heads a KV head: 1 to {MAX_GROUP}")


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: "AttentionBatch",
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`sirocco.kernels.attention.paged_attention`; raises ValueError as `check_attention`."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    check_attention(head_dim, q.dtype, block_size, group)
    if q.stride(-1) != 1 or not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError(f"attention needs adjacent channels of q and contiguous caches, not strides {q.stride()}")
    padded = num_tokens > sum(batch.query_lens)
    out = q.new_zeros(q.shape) if padded else q.new_empty(q.shape)
    shape = work_shape(num_heads, head_dim, q.dtype, num_kv_heads, window, q.device)
    for work in batch_work(batch, shape, q.device):
        _launch(work, q, k_cache, v_cache, out, batch.block_table, scale, window, softcap, sinks)
    return out


def batch_work(batch: "AttentionBatch", shape: WorkShape, device: torch.device) -> list[Work]:
    """What a step's layers of one shape launch; made once, and refilled by `refill` where the batch is static."""
    work: list[Work] | None = batch.work.get(shape)
    if work is None:
        tiles = cut(batch.query_lens, batch.kv_lens, shape)
        work = [
            Work(kind, shape, tiles[kind], device, batch.static, batch.invariant) for kind in KERNEL if len(tiles[kind])
        ]
        batch.work[shape] = work
    return work


def refill(batch: "AttentionBatch") -> None:
    """Bring the work of a static batch in line with its lengths, in place."""
    for shape, work in batch.work.items():
        tiles = cut(batch.query_lens, batch.kv_lens, shape)
        for one in work:
            one.refill(tiles[one.kind])


@functools.cache
def work_shape(
    num_heads: int, head_dim: int, dtype: torch.dtype, num_kv_heads: int, window: int | None, device: torch.device
) -> WorkShape:
    """How a step is cut for a layer."""
    group = num_heads // num_kv_heads
    options = [_options(kind, head_dim, dtype, group) for kind in (PREFILL, DECODE)]
    rows, keys = ((options[0][name], options[1][name]) for name in ("BLOCK_M", "BLOCK_N"))
    return WorkShape(group, num_kv_heads, window, rows, keys, num_processors(device))


@functools.cache
def num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _options(kind: int, head_dim: int, dtype: torch.dtype, group: int) -> Options:
    options = tuned("attention", f"{KERNEL[kind]}_{8 * dtype.itemsize}", head_dim)
    return options | {"BLOCK_M": max(options["BLOCK_M"], power_of_two(group))}


def precision() -> str:
    """How float32 is multiplied: on NVIDIA as three tf32 products, as exact and without spilling registers."""
    return "ieee" if device_key()[1].startswith("gfx") else "tf32x3"


def head_parts(head_dim: int) -> tuple[int, int]:
    """The two powers of two, or one and 0, in which a head is multiplied; they may hold a few dims too many."""
    whole = 1 << (head_dim.bit_length() - 1)
    if whole == head_dim:
        return whole, 0
    tail = max(16, power_of_two(head_dim - whole))
    return (whole, tail) if tail < whole else (2 * whole, 0)


def _launch(
    work: Work,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    head_dim, (num_kv_heads, block_size) = q.shape[2], k_cache.shape[1:3]
    group = q.shape[1] // num_kv_heads
    block_d, tail = head_parts(head_dim)
    options = _options(work.kind, head_dim, q.dtype, group)
    descriptors = bool(options["DESCRIPTORS"]) and tail == 0 and block_size % options["BLOCK_N"] == 0
    keys, values = (_rows(cache, options["BLOCK_N"], block_d) if descriptors else cache for cache in (k_cache, v_cache))
    part = torch.empty(work.slots, num_kv_heads, work.rows, head_dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(work.slots, num_kv_heads, work.rows, dtype=torch.float32, device=q.device)
    launch(
        _attention_kernel,
        (len(work.items), num_kv_heads),
        *(q, keys, values, out, part, part_lse, sinks, work.items, block_table),
        *(q.stride(0), q.stride(1), block_table.stride(0), num_kv_heads, work.rows, window or NO_WINDOW),
        scale * LOG2_E.value if softcap is None else 2 * scale * LOG2_E.value / softcap,
        0.0 if softcap is None else softcap * LOG2_E.value,
        ITEM=ITEM,
        GROUP=group,
        D=head_dim,
        S=block_size,
        BLOCK_D=block_d,
        TAIL=tail,
        WINDOW=window is not None,
        SOFTCAP=softcap is not None,
        SINKS=sinks is not None,
        PRECISION=precision(),
        UPCAST=INTERPRETED,
        **(options | {"DESCRIPTORS": descriptors}),
    )
    merge(work, part, part_lse, out, sinks, group)


def merge(work: Work, part: Tensor, part_lse: Tensor, out: Tensor, sinks: Tensor | None, group: int) -> None:
    """Bring together the splits part [slots, Hkv, rows, D], with their part_lse, in out [T, Hkv * group, D]."""
    if not len(work.merges):
        return
    num_kv_heads, head_dim = part.shape[1], part.shape[3]
    block_d = power_of_two(head_dim)
    launch(
        _merge_kernel,
        (len(work.merges), num_kv_heads, work.rows),
        *(part, part_lse, out, sinks, work.merges, num_kv_heads, work.rows),
        MERGE=MERGE,
        GROUP=group,
        D=head_dim,
        BLOCK_D=block_d,
        BLOCK_S=min(16, MERGE_AT_ONCE // block_d),
        SINKS=sinks is not None,
        num_warps=4,
    )


def _rows(cache: Tensor, block_n: int, block_d: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(cache.view(-1, cache.shape[-1]), [block_n, block_d])
