# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention of whole sequences to themselves: tiles of queries of one head against the keys that they can see.

Sequences of all lengths share one launch. Under a window a tile reads the keys of its own neighbourhood alone.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.attention import DTYPES, LOG2_E, NO_WINDOW, load_tile, precision, product
from sirocco.kernels.triton.common import INTERPRETED, launch, power_of_two, tuned

if TYPE_CHECKING:
    from sirocco.kernels.attention import AttentionBatch

MAX_HEAD_DIM = 256
ITEM = 4  # int32 of an item: first token of the sequence, its length, first query of the tile, nothing


@triton.jit
def _attend_keys(
    acc, best, total, q, q_index, k_ptr, v_ptr, bias_ptr, start, stop, length, window, reach, k_stride_t, v_stride_t,
    scale, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take keys start … stop into the running softmax; MASKED where a query may not see them all."""
    BLOCK_M: tl.constexpr = q.shape[0]
    d = tl.arange(0, BLOCK_D)
    for n_start in range(start, stop, BLOCK_N):
        n = n_start + tl.arange(0, BLOCK_N)
        seen = n < length
        row = n.to(tl.int64)[:, None]  # row * stride may outgrow int32
        k = load_tile(k_ptr + row * k_stride_t + d[None, :], seen, d < D, MASKED, BLOCK_D > D)
        scores = product(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, UPCAST) * scale
        distance = n[None, :] - q_index[:, None]
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + tl.minimum(tl.maximum(distance, -reach), reach) + reach)
            scores += bias.to(tl.float32) * LOG2_E
        if MASKED:
            scores = tl.where((tl.abs(distance) < window) & seen[None, :], scores, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        origin = tl.where(higher == -float("inf"), 0.0, higher) if MASKED else higher
        weights = tl.exp2(scores - origin[:, None])
        fade = tl.exp2(best - origin)
        total = total * fade + tl.sum(weights, 1)
        best = higher
        v = load_tile(v_ptr + row * v_stride_t + d[None, :], seen, d < D, MASKED, BLOCK_D > D)
        acc = product(weights.to(q.dtype), v, acc * fade[:, None], PRECISION, UPCAST)
    return acc, best, total


@triton.jit(do_not_specialize=["window", "reach"])
def _bidirectional_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, items_ptr,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h, H, group, window, reach, scale,
    ITEM: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    item_ptr = items_ptr + tl.program_id(0) * ITEM
    token = tl.load(item_ptr).to(tl.int64)  # token * stride outgrows int32
    length, first = tl.load(item_ptr + 1), tl.load(item_ptr + 2)
    head = tl.program_id(1)
    k_ptr += token * k_stride_t + head // group * k_stride_h
    v_ptr += token * v_stride_t + head // group * v_stride_h
    bias_ptr = bias_ptr + head * (2 * reach + 1) if bias_ptr is not None else None

    q_index, d = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    real = q_index < length
    q_row = (token + q_index)[:, None]
    q = load_tile(q_ptr + q_row * q_stride_t + head * q_stride_h + d[None, :], real, d < D, True, BLOCK_D > D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    # All queries see the keys of the middle; before and after it they need masks.
    last = tl.minimum(first + BLOCK_M, length) - 1
    start = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
    stop = tl.minimum(last + window, length)
    middle = start + tl.cdiv(tl.maximum(last - window + 1 - start, 0), BLOCK_N) * BLOCK_N
    after = start + tl.maximum(tl.minimum(first + window, length) - start, 0) // BLOCK_N * BLOCK_N
    if WINDOW:
        acc, best, total = _attend_keys(
            acc, best, total, q, q_index, k_ptr, v_ptr, bias_ptr, start, middle, length, window, reach, k_stride_t,
            v_stride_t, scale, D, BLOCK_N, BLOCK_D, True, PRECISION, UPCAST,
        )  # fmt: skip
    acc, best, total = _attend_keys(
        acc, best, total, q, q_index, k_ptr, v_ptr, bias_ptr, middle, after, length, window, reach, k_stride_t,
        v_stride_t, scale, D, BLOCK_N, BLOCK_D, False, PRECISION, UPCAST,
    )  # fmt: skip
    acc, best, total = _attend_keys(
        acc, best, total, q, q_index, k_ptr, v_ptr, bias_ptr, tl.maximum(middle, after), stop, length, window, reach,
        k_stride_t, v_stride_t, scale, D, BLOCK_N, BLOCK_D, True, PRECISION, UPCAST,
    )  # fmt: skip

    out = acc / tl.where(real, total, 1.0)[:, None]
    out_ptrs = out_ptr + (q_row * H + head) * D + d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=real[:, None] & (d < D)[None, :])


def check_bidirectional_attention(head_dim: int, dtype: torch.dtype) -> None:
    """Raise ValueError for a head dim or dtype without a kernel."""
    if dtype not in DTYPES:
        raise ValueError(f"bidirectional attention has no kernel for {dtype}: float32, float16 or bfloat16")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"bidirectional attention has no kernel for a head_dim of {head_dim}: 1 to {MAX_HEAD_DIM}")


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: "AttentionBatch",
    scale: float,
    window: int | None,
    distance_bias: Tensor | None,
) -> Tensor:
    """`sirocco.kernels.bidirectional.bidirectional_attention`; ValueError as `check_bidirectional_attention`."""
    num_tokens, num_heads, head_dim = q.shape
    check_bidirectional_attention(head_dim, q.dtype)
    if any(x.stride(2) != 1 or x.dtype != q.dtype for x in (q, k, v)):
        raise ValueError(f"bidirectional attention needs keys and values of {q.dtype} and adjacent dims")
    if distance_bias is not None and not (distance_bias.is_contiguous() and len(distance_bias) == num_heads):
        raise ValueError(f"biases {tuple(distance_bias.shape)} are not adjacent ones of {num_heads} heads")
    out = q.new_empty(num_tokens, num_heads, head_dim)
    options = tuned("bidirectional", f"bidirectional_{8 * q.dtype.itemsize}", head_dim)
    items = _items(batch, options["BLOCK_M"], q.device)
    if not len(items):
        return out
    launch(
        _bidirectional_kernel,
        (len(items), num_heads),
        *(q, k, v, distance_bias, out, items),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], num_heads, num_heads // k.shape[1]),
        *(
            min(window or NO_WINDOW, NO_WINDOW),
            0 if distance_bias is None else distance_bias.shape[1] // 2,
            scale * LOG2_E.value,
        ),
        ITEM=ITEM,
        D=head_dim,
        BLOCK_D=max(16, power_of_two(head_dim)),
        WINDOW=window is not None,
        PRECISION=precision(),
        UPCAST=INTERPRETED,
        **options,
    )
    return out


def _items(batch: "AttentionBatch", rows: int, device: torch.device) -> Tensor:
    """The tiles of a step's sequences, the longest sequences first: made once for its layers."""
    assert not batch.static, "nothing is captured that looks both ways"
    key = ("bidirectional", rows)
    if key not in batch.work:
        lengths = np.array(batch.query_lens, np.int64)
        counts = -(-lengths // rows)
        sequence = np.repeat(np.arange(len(lengths)), counts)
        first = (np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)) * rows
        items = np.zeros((len(sequence), ITEM), np.int32)
        items[:, 0] = (np.cumsum(lengths) - lengths)[sequence]
        items[:, 1] = lengths[sequence]
        items[:, 2] = first
        items = items[np.argsort(-items[:, 1], kind="stable")]
        host = torch.from_numpy(items)
        batch.work[key] = (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
    found: Tensor = batch.work[key]
    return found
