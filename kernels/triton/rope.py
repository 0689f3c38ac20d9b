# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Rotary position embedding of heads, by itself; `kv.py` has it fused with the norm and the write to the cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, power_of_two, require_dtype, tuned


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """As `sirocco.kernels.rope.rotate`; ValueError for other dtypes than 2- and 4-byte floats."""
    require_dtype("rotate", x)
    num_tokens, num_heads, head_dim = x.shape
    check_tables(cos, sin, num_tokens, head_dim)
    if x.stride(-1) != 1:
        raise ValueError(f"rotate needs adjacent dims, not a stride of {x.stride(-1)}")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        options = tuned("rope", "rotate", head_dim)
        grid = (num_tokens, cdiv(num_heads, options["BLOCK_H"]))
        launch(
            _rotate_kernel,
            grid,
            x,
            cos,
            sin,
            out,
            x.stride(0),
            x.stride(1),
            cos.stride(0),
            num_heads,
            head_dim,
            2 * cos.shape[-1],
            INTERLEAVED=interleaved,
            BLOCK_D=power_of_two(head_dim),
            **options,
        )
    return out


def check_tables(cos: Tensor, sin: Tensor, num_tokens: int, head_dim: int) -> None:
    """Raise ValueError unless cos and sin are float32 [T, R / 2] with R at most the head's dims."""
    for table in (cos, sin):
        if table.dtype != torch.float32:
            raise ValueError(f"rotary tables are float32 on a GPU, not {table.dtype}")
        if table.dim() != 2 or len(table) != num_tokens or not 0 < 2 * table.shape[1] <= head_dim:
            raise ValueError(f"rotary tables {tuple(table.shape)} do not fit {num_tokens} tokens of {head_dim} dims")
        if table.stride(1) != 1 or table.stride(0) != cos.stride(0):
            raise ValueError("rotary tables need adjacent angles and equal strides")


@triton.jit
def _rotate_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    x_stride_t,
    x_stride_h,
    table_stride_t,
    H,
    D,
    R,
    INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)  # t * stride outgrows int32
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (h < H) & (d < D)
    partner, cos, sin = turn(cos_ptr + t * table_stride_t, sin_ptr + t * table_stride_t, d, R, INTERLEAVED)
    head_ptr = x_ptr + t * x_stride_t + h * x_stride_h
    x = tl.load(head_ptr + d, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(head_ptr + partner, mask=mask & (d < R), other=0.0).to(tl.float32)  # in the cache by now
    tl.store(out_ptr + (t * H + h) * D + d, (x * cos + other * sin).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def turn(cos_ptr, sin_ptr, d, R, INTERLEAVED: tl.constexpr):
    """Of dims d: the dim of a pair's other half, and what to multiply both with; dims from R on stay as they are."""
    if INTERLEAVED:
        partner, pair, second = d ^ 1, d // 2, d % 2 == 1
    else:
        half = R // 2
        second = d >= half
        partner, pair = tl.where(second, d - half, d + half), tl.where(second, d - half, d)
    rotated = d < R
    cos = tl.load(cos_ptr + pair, mask=rotated, other=1.0)
    sin = tl.load(sin_ptr + pair, mask=rotated, other=0.0)
    return partner, cos, tl.where(second, sin, -sin)
