# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The experts' products over tokens sorted by expert, in one launch and without asking the device how many each has."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.mxfp4 import Mxfp4Stack
from sirocco.kernels.triton import mxfp4
from sirocco.kernels.triton.common import INTERPRETED, cdiv, dot, launch, power_of_two, require_dtype, rows_of, tuned
from sirocco.kernels.triton.expert_tiles import expert_of_tile, most_tiles


def apply_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor | Mxfp4Stack,
    down: Tensor | Mxfp4Stack,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """As `sirocco.kernels.moe.apply_experts`, of experts stacked as up [E, N, C] and down [E, C, I].

    chosen and weights are the routing's [T, K]. Raises ValueError as `grouped_matmul` does.
    """
    num_tokens, top_k = chosen.shape
    by_expert, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(by_expert, torch.arange(len(up), device=x.device), right=True)
    rows = activation(_multiply(x, up, up_bias, ends, order, top_k))
    rows = _multiply(rows, down, down_bias, ends, None, 1)
    outputs = torch.empty_like(rows).index_copy_(0, order, rows).view(num_tokens, top_k, -1)
    return torch.bmm(weights.to(x.dtype)[:, None], outputs).squeeze(1)


def _multiply(
    x: Tensor, weight: Tensor | Mxfp4Stack, bias: Tensor | None, ends: Tensor, order: Tensor | None, top_k: int
) -> Tensor:
    if isinstance(weight, Mxfp4Stack):
        return mxfp4.grouped_matmul(x, weight, bias, ends, order, top_k)
    return grouped_matmul(x, weight, bias, ends, order, top_k)


def grouped_matmul(
    x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor, order: Tensor | None, top_k: int
) -> Tensor:
    """Return rows [R, N] in order of experts, each times its own matrix of weight [E, N, K], plus its bias [E, N].

    Rows up to ends[e] [E] and past ends[e - 1] belong to expert e. Row r is x[order[r] // top_k] [T, K], with order
    [R], or x[r] without. ValueError for other dtypes than 2- and 4-byte floats, mixed ones and gaps in the weights.
    """
    require_dtype("grouped_matmul", x, weight, bias)
    rows = rows_of("grouped_matmul", x)
    num_experts, num_outputs, num_inputs = weight.shape
    if weight.dtype != x.dtype or not weight.is_contiguous() or rows.shape[1] != num_inputs:
        raise ValueError(
            f"grouped_matmul of {x.dtype} rows of {rows.shape[1]} needs contiguous weights of the like, "
            f"not {weight.dtype} {tuple(weight.shape)}"
        )
    num_rows = len(rows) if order is None else len(order)
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    options = tuned("moe", "grouped_matmul", cdiv(num_rows, num_experts))
    launch(
        _grouped_matmul_kernel,
        (cdiv(num_outputs, options["BLOCK_N"]), most_tiles(num_rows, num_experts, options["BLOCK_M"])),
        rows,
        weight,
        bias,
        out,
        order,
        ends,
        rows.stride(0),
        num_outputs,
        num_inputs,
        num_experts,
        top_k,
        UPCAST=INTERPRETED,
        BLOCK_E=power_of_two(num_experts),
        **options,
    )
    return out


@triton.jit(do_not_specialize=["top_k"])
def _grouped_matmul_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    order_ptr,
    ends_ptr,
    x_stride_r,
    N,
    K,
    E,
    top_k,
    UPCAST: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert, start, end = expert_of_tile(ends_ptr, tl.program_id(1), E, BLOCK_E, BLOCK_M)
    if expert >= E:
        return
    r = start + tl.arange(0, BLOCK_M)
    live = r < end
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    source = r
    if order_ptr is not None:
        source = (tl.load(order_ptr + r, mask=live, other=0) // top_k).to(tl.int32)
    x_ptrs = x_ptr + source.to(tl.int64)[:, None] * x_stride_r + k[None, :]
    weight_ptrs = weight_ptr + (expert.to(tl.int64) * N + n)[None, :] * K + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        x = tl.load(x_ptrs + first, mask=live[:, None] & (k[None, :] < K - first), other=0.0)
        weight = tl.load(weight_ptrs + first, mask=(n[None, :] < N) & (k[:, None] < K - first), other=0.0)
        acc = dot(x, weight, acc, UPCAST)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + expert * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + r.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & (n[None, :] < N))
