# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""RMSNorm and LayerNorm, alone and after adding to the residual stream, and RMSNorm of gated groups.

Each row is read once and kept in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, power_of_two, require_dtype, rows_of, tuned

MAX_WIDTH = 16384  # beyond it a row no longer fits the registers of one block of threads


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `sirocco.kernels.norm.rms_norm`; ValueError for other dtypes than 2- and 4-byte floats and wide rows."""
    return _norm("rms_norm", x, None, weight, None, eps, centred=False)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `sirocco.kernels.norm.add_rms_norm`, in one pass; ValueError as in `rms_norm`."""
    return _norm("add_rms_norm", x, residual, weight, None, eps, centred=False)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """As `sirocco.kernels.norm.layer_norm`; ValueError as in `rms_norm`."""
    return _norm("layer_norm", x, None, weight, bias, eps, centred=True)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As `sirocco.kernels.norm.add_layer_norm`, in one pass; ValueError as in `rms_norm`."""
    return _norm("add_layer_norm", x, residual, weight, bias, eps, centred=True)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    """As `sirocco.kernels.mamba.gated_rms_norm`; ValueError for other dtypes than 2- and 4-byte floats, wide groups."""
    require_dtype("gated_rms_norm", x, gate, weight)
    rows, gates = rows_of("gated_rms_norm", x), rows_of("gated_rms_norm", gate)
    width = rows.shape[1] // num_groups
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"gated_rms_norm has no kernel for groups of {width}: 1 to {MAX_WIDTH}")
    if gates.shape != rows.shape or weight.shape != (width * num_groups,):
        raise ValueError(
            f"gated_rms_norm of {tuple(rows.shape)} needs gates of the like and as many weights as channels, "
            f"not {tuple(gates.shape)} and {tuple(weight.shape)}"
        )
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if not len(rows):
        return out
    options = tuned("norm", "norm", width)
    launch(
        _gated_norm_kernel,
        (cdiv(len(rows), options["ROWS"]), num_groups),
        rows,
        gates,
        weight.contiguous(),
        out,
        rows.stride(0),
        gates.stride(0),
        len(rows),
        width,
        eps,
        BLOCK_C=power_of_two(width),
        **options,
    )
    return out


def _norm(
    operator: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """The normed rows, and the sums where there is a residual (else x)."""
    require_dtype(operator, x, weight, bias)
    width = x.shape[-1]
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"{operator} has no kernel for rows of {width}: 1 to {MAX_WIDTH}")
    if weight.shape != (width,) or (bias is not None and bias.shape != (width,)):
        raise ValueError(f"{operator} of rows of {width} needs as many weights, not {tuple(weight.shape)}")
    rows = rows_of(operator, x)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    summed, added = x, None
    if residual is not None:
        if residual.dtype != x.dtype or residual.shape != x.shape:
            raise ValueError(f"{operator} adds {x.dtype} {tuple(x.shape)} to the like, not to {residual.dtype}")
        added = rows_of(operator, residual)
        summed = torch.empty_like(normed)
    if not len(rows):
        return normed, summed
    options = tuned("norm", "norm", width)
    launch(
        _norm_kernel,
        (cdiv(len(rows), options["ROWS"]),),
        rows,
        added,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        normed,
        summed if added is not None else None,
        rows.stride(0),
        0 if added is None else added.stride(0),
        len(rows),
        width,
        eps,
        CENTRED=centred,
        BLOCK_C=power_of_two(width),
        **options,
    )
    return normed, summed


@triton.jit(do_not_specialize=["T"])
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    normed_ptr,
    summed_ptr,
    x_stride_t,
    residual_stride_t,
    T,
    C,
    eps,
    CENTRED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # t * stride outgrows int32
    c = tl.arange(0, BLOCK_C)[None, :]
    mask = (t < T) & (c < C)
    x = tl.load(x_ptr + t * x_stride_t + c, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + t * residual_stride_t + c, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + t * C + c, rounded, mask=mask)
        x = rounded.to(tl.float32)  # the norm reads what the next layer will
    if CENTRED:
        x = tl.where(mask, x - tl.sum(x, axis=1, keep_dims=True) / C, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / C + eps)
    y = x * scale * tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(normed_ptr + t * C + c, y.to(normed_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _gated_norm_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    out_ptr,
    x_stride_t,
    gate_stride_t,
    T,
    C,
    eps,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # t * stride outgrows int32
    within = tl.arange(0, BLOCK_C)[None, :]
    c = tl.program_id(1) * C + within  # C channels a group
    mask = (t < T) & (within < C)
    x = tl.load(x_ptr + t * x_stride_t + c, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + t * gate_stride_t + c, mask=mask, other=0.0).to(tl.float32)
    x *= gate * tl.sigmoid(gate)
    scale = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / C + eps)
    dtype = out_ptr.dtype.element_ty
    normed = (x * scale).to(dtype).to(tl.float32)  # the definition rounds here too
    y = normed * tl.load(weight_ptr + c, mask=within < C, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * (C * tl.num_programs(1)) + c, y.to(dtype), mask=mask)
