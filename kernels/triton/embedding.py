# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Gathering rows of an embedding matrix."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, require_dtype, tuned


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """As `sirocco.kernels.embedding.embedding`; an id outside the matrix reads nothing and gives zeros."""
    require_dtype("embedding", weight)
    if token_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"token ids are int32 or int64, not {token_ids.dtype}")
    if weight.stride(1) != 1:
        raise ValueError(f"embedding needs adjacent channels, not a stride of {weight.stride(1)}")
    if not token_ids.is_contiguous():
        raise ValueError("embedding needs token ids without gaps")
    vocab_size, width = weight.shape
    out = torch.empty((*token_ids.shape, width), dtype=weight.dtype, device=weight.device)
    if out.numel():
        options = tuned("embedding", "embedding", width)
        grid = (token_ids.numel(), cdiv(width, options["BLOCK_C"]))
        launch(_embedding_kernel, grid, token_ids, weight, out, weight.stride(0), vocab_size, width, **options)
    return out


@triton.jit(do_not_specialize_on_alignment=["token_ids_ptr"])
def _embedding_kernel(token_ids_ptr, weight_ptr, out_ptr, weight_stride_v, V, C, BLOCK_C: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)  # t * C outgrows int32, and so does a token's row
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    token_id = tl.load(token_ids_ptr + t).to(tl.int64)
    width = tl.where((token_id >= 0) & (token_id < V), C, 0)  # channels that may be read
    row = tl.load(weight_ptr + token_id * weight_stride_v + c, mask=c < width, other=0.0)
    tl.store(out_ptr + t * C + c, row, mask=c < C)
