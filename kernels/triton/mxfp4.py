# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The experts' products over tokens sorted by expert, their weights expanded from MXFP4 in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.mxfp4 import BLOCK, Mxfp4Stack
from sirocco.kernels.triton.common import INTERPRETED, cdiv, dot, launch, power_of_two, require_dtype, rows_of, tuned
from sirocco.kernels.triton.expert_tiles import expert_of_tile, most_tiles


def grouped_matmul(
    x: Tensor, weight: Mxfp4Stack, bias: Tensor | None, ends: Tensor, order: Tensor | None, top_k: int
) -> Tensor:
    """As `sirocco.kernels.triton.moe.grouped_matmul`, of weights [E, N, 32 G] in MXFP4 and in the dtype of x."""
    require_dtype("grouped_matmul", x, bias)
    rows = rows_of("grouped_matmul", x)
    num_experts, num_outputs, num_groups = weight.scales.shape
    if not (weight.blocks.is_contiguous() and weight.scales.is_contiguous()) or rows.shape[1] != BLOCK * num_groups:
        raise ValueError(
            f"grouped_matmul of rows of {rows.shape[1]} needs contiguous MXFP4 blocks of the like, "
            f"not {tuple(weight.blocks.shape)}"
        )
    num_rows = len(rows) if order is None else len(order)
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    options = tuned("mxfp4", "grouped_matmul", cdiv(num_rows, num_experts))
    launch(
        _mxfp4_matmul_kernel,
        (cdiv(num_outputs, options["BLOCK_N"]), most_tiles(num_rows, num_experts, options["BLOCK_M"])),
        rows,
        weight.blocks,
        weight.scales,
        bias,
        out,
        order,
        ends,
        rows.stride(0),
        num_outputs,
        num_groups,
        num_experts,
        top_k,
        UPCAST=INTERPRETED,
        BLOCK_E=power_of_two(num_experts),
        **options,
    )
    return out


@triton.jit(do_not_specialize=["top_k"])
def _mxfp4_matmul_kernel(
    x_ptr,
    blocks_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    order_ptr,
    ends_ptr,
    x_stride_r,
    N,
    G,
    E,
    top_k,
    UPCAST: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,
):
    expert, start, end = expert_of_tile(ends_ptr, tl.program_id(1), E, BLOCK_E, BLOCK_M)
    if expert >= E:
        return
    r = start + tl.arange(0, BLOCK_M)
    live = r < end
    source = r
    if order_ptr is not None:
        source = (tl.load(order_ptr + r, mask=live, other=0) // top_k).to(tl.int32)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, GROUPS * 32)
    byte = tl.arange(0, GROUPS * 16)
    g = tl.arange(0, GROUPS)
    x_ptrs = x_ptr + source.to(tl.int64)[:, None] * x_stride_r + k[None, :]
    row = (expert.to(tl.int64) * N + n)[:, None] * G  # of groups
    blocks_ptrs = blocks_ptr + row * 16 + byte[None, :]
    scales_ptrs = scales_ptr + row + g[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, G, GROUPS):
        x = tl.load(x_ptrs + first * 32, mask=live[:, None] & (k[None, :] < (G - first) * 32), other=0.0)
        mask = (n[:, None] < N) & (byte[None, :] < (G - first) * 16)
        codes = tl.load(blocks_ptrs + first * 16, mask=mask, other=0)
        scales = tl.load(scales_ptrs + first, mask=(n[:, None] < N) & (g[None, :] < G - first), other=127)
        weight = _expand(codes, scales, BLOCK_N, GROUPS).to(x.dtype)
        acc = dot(x, tl.trans(weight), acc, UPCAST)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + expert * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + r.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & (n[None, :] < N))


@triton.jit
def _expand(codes, scales, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """codes [ROWS, 16 GROUPS] of two values each, times scales [ROWS, GROUPS], as [ROWS, 32 GROUPS] in float32."""
    # A code's three low bits, in the places of float16's exponent and mantissa, are its value over 2^14, exactly.
    codes = codes.to(tl.int16)
    low = ((codes & 8) << 12) | ((codes & 7) << 9)
    high = ((codes & 128) << 8) | ((codes & 112) << 5)
    values = tl.join(low, high).to(tl.float16, bitcast=True).to(tl.float32)
    # 2^(byte - 127) has its byte as exponent, but for the least, which only a subnormal holds, and 255, which is NaN.
    byte = scales.to(tl.int32)
    factor = tl.where(byte == 0, 0x00400000, tl.where(byte == 255, 0x7FC00000, byte << 23)).to(tl.float32, bitcast=True)
    weight = tl.reshape(values, (ROWS, GROUPS, 32)) * 16384.0 * factor[:, :, None]
    return tl.reshape(weight, (ROWS, GROUPS * 32))
