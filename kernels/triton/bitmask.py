# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Forbidding tokens by bit masks: only words with a forbidden token cost a write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, require_dtype, tuned


def apply_bitmask(logits: Tensor, mask: Tensor, rows: Tensor | None) -> None:
    """As `sirocco.kernels.bitmask.apply_bitmask`, which has checked the shapes; logits are not read."""
    require_dtype("apply_bitmask", logits)
    if logits.stride(1) != 1 or mask.stride(1) != 1:
        raise ValueError("apply_bitmask needs logits and masks with adjacent columns")
    if rows is not None and (rows.dtype not in (torch.int32, torch.int64) or not rows.is_contiguous()):
        raise ValueError(f"rows are int32 or int64 without gaps, not {rows.dtype}")
    if mask.numel():
        options = tuned("bitmask", "bitmask", logits.shape[1])
        grid = (len(mask), cdiv(mask.shape[1], options["WORDS"]))
        strides = logits.stride(0), mask.stride(0)
        launch(_bitmask_kernel, grid, logits, mask, rows, *strides, logits.shape[1], mask.shape[1], **options)


@triton.jit(do_not_specialize_on_alignment=["rows_ptr"])
def _bitmask_kernel(logits_ptr, mask_ptr, rows_ptr, logits_stride_b, mask_stride_g, V, W, WORDS: tl.constexpr):
    g = tl.program_id(0).to(tl.int64)  # b * stride outgrows int32
    b = tl.load(rows_ptr + g).to(tl.int64) if rows_ptr is not None else g
    w = tl.program_id(1) * WORDS + tl.arange(0, WORDS)[:, None]
    bit = tl.arange(0, 32)[None, :]
    words = tl.load(mask_ptr + g * mask_stride_g + w, mask=w < W, other=-1)
    v = w * 32 + bit
    forbidden = ((words >> bit) & 1) == 0
    minus_infinity = tl.full((WORDS, 32), float("-inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + b * logits_stride_b + v, minus_infinity, mask=forbidden & (v < V))
