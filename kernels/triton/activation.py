# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Activations, gated and plain, in float32 with one rounding."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, require_dtype, rows_of, tuned

KINDS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "tanh")


def gated(gate_up: Tensor, kind: str) -> Tensor:
    """Return kind(gate) * up of gate_up [..., 2 I], gate in the first half, as [..., I]."""
    return _activate(_gated_kernel, gate_up, _half(gate_up), kind)


def clamped_swiglu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """As `sirocco.kernels.moe.clamped_swiglu`."""
    require_dtype("clamped_swiglu", gate_up)
    rows, width = rows_of("clamped_swiglu", gate_up), _half(gate_up)
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        options = tuned("activation", "activation", width)
        grid = (len(rows), cdiv(width, options["BLOCK_I"]))
        launch(_clamped_swiglu_kernel, grid, rows, out, rows.stride(0), width, alpha, limit, **options)
    return out


def _half(gate_up: Tensor) -> int:
    width: int = gate_up.shape[-1]
    if width % 2:
        raise ValueError(f"gate and up are halves of a row, which {width} channels do not have")
    return width // 2


def unary(x: Tensor, kind: str) -> Tensor:
    """Return the activation of each element of x [..., C]; `kind` is one of KINDS."""
    return _activate(_unary_kernel, x, x.shape[-1], kind)


def _activate(kernel: object, x: Tensor, width: int, kind: str) -> Tensor:
    require_dtype(kind, x)
    if kind not in KINDS:
        raise ValueError(f"no kernel for activation {kind!r}; there are {', '.join(KINDS)}")
    rows = rows_of(kind, x)
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    if out.numel():
        options = tuned("activation", "activation", width)
        grid = (len(rows), cdiv(width, options["BLOCK_I"]))
        launch(kernel, grid, rows, out, rows.stride(0), width, KIND=kind, **options)
    return out


@triton.jit
def _gated_kernel(gate_up_ptr, out_ptr, stride_t, C, KIND: tl.constexpr, BLOCK_I: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)  # t * stride outgrows int32
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = i < C
    gate = tl.load(gate_up_ptr + t * stride_t + i, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + t * stride_t + C + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * C + i, (_activation(gate, KIND) * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _clamped_swiglu_kernel(gate_up_ptr, out_ptr, stride_t, C, alpha, limit, BLOCK_I: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = i < C
    gate = tl.load(gate_up_ptr + t * stride_t + i, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + t * stride_t + C + i, mask=mask, other=0.0).to(tl.float32)
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    y = gate * tl.sigmoid(alpha * gate) * (up + 1.0)
    tl.store(out_ptr + t * C + i, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _unary_kernel(x_ptr, out_ptr, stride_t, C, KIND: tl.constexpr, BLOCK_I: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = c < C
    x = tl.load(x_ptr + t * stride_t + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * C + c, _activation(x, KIND).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activation(x, KIND: tl.constexpr):
    # Comparisons rather than maximum and minimum, which lose NaN.
    if KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh(z)) / 2 is sigmoid(2 z)
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif KIND == "relu":
        y = tl.where(x < 0.0, 0.0, x)
    elif KIND == "relu2":
        y = tl.where(x < 0.0, 0.0, x * x)
    elif KIND == "relu6":
        y = tl.where(x < 0.0, 0.0, tl.where(x > 6.0, 6.0, x))
    elif KIND == "sigmoid":
        y = tl.sigmoid(x)
    else:
        tl.static_assert(KIND == "tanh")
        square = x * x  # near 0 the difference below has no digits left
        series = x * (1.0 - square * (0.3333333333 - square * (0.1333333333 - square * 0.0539682540)))
        y = tl.where(square < 0.01, series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)
    return y
