"""Masks of allowed tokens, a bit each, as grammars make them."""

import torch
from torch import Tensor

from sirocco.kernels.backend import use_triton

WORD_BITS = 32


def mask_words(vocab_size: int) -> int:
    """How many int32 words hold a bit for each of `vocab_size` tokens."""
    return -(-vocab_size // WORD_BITS)


def apply_bitmask(logits: Tensor, mask: Tensor, rows: Tensor | None = None) -> None:
    """Set logits [B, V], in place, to -inf where a bit of mask [G, ceil(V / 32)] int32 is 0.

    Token v is bit v % 32 of word v // 32. Row g of the mask is for row rows[g] of the logits, rows [G] int64 without
    repeats, or for row g where `rows` is None. Raises ValueError where the shapes or the mask's dtype do not fit.
    """
    num_rows = len(logits) if rows is None else len(rows)
    if mask.dtype != torch.int32 or mask.shape != (num_rows, mask_words(logits.shape[1])):
        raise ValueError(
            f"{num_rows} rows of {logits.shape[1]} logits need a mask [{num_rows}, {mask_words(logits.shape[1])}] "
            f"of int32, not {list(mask.shape)} of {mask.dtype}"
        )
    if use_triton(logits):
        from sirocco.kernels.triton import bitmask

        bitmask.apply_bitmask(logits, mask, rows)
    else:
        apply_bitmask_torch(logits, mask, rows)


def apply_bitmask_torch(logits: Tensor, mask: Tensor, rows: Tensor | None) -> None:
    """The definition of `apply_bitmask`."""
    bits = torch.arange(WORD_BITS, dtype=torch.int32, device=mask.device)
    forbidden = (mask[..., None] >> bits & 1 == 0).flatten(1)[:, : logits.shape[1]]
    if rows is None:
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(forbidden, -torch.inf))
