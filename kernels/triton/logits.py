# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""What happens to logits beside the draw: penalties before it, log-probabilities after it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, power_of_two, require_dtype, tuned


def apply_penalties(
    logits: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """As `sirocco.kernels.sampling.apply_penalties`, in one pass; ValueError for float64 and gaps between columns."""
    require_dtype("apply_penalties", logits)
    if logits.stride(1) != 1 or output_counts.stride(1) != 1 or prompt_mask.stride(1) != 1:
        raise ValueError("apply_penalties needs adjacent columns")
    if not logits.numel():
        return
    vocab_size = logits.shape[1]
    options = tuned("logits", "penalties", vocab_size)
    launch(
        _penalties_kernel,
        (len(logits), cdiv(vocab_size, options["TILE"])),
        logits,
        output_counts,
        prompt_mask.view(torch.uint8),
        repetition,
        presence,
        frequency,
        logits.stride(0),
        output_counts.stride(0),
        prompt_mask.stride(0),
        vocab_size,
        **options,
    )


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `sirocco.kernels.sampling.token_logprobs`; ValueError for float64 and gaps between columns.

    The normaliser takes one read of the logits; the best tokens are torch's to find.
    """
    require_dtype("token_logprobs", logits)
    num_rows, vocab_size = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("token_logprobs needs adjacent columns")
    top, top_ids = logits.topk(num_top, -1)
    logprob = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    top_logprobs = torch.empty((num_rows, num_top), dtype=torch.float32, device=logits.device)
    if not num_rows:
        return logprob, top_ids, top_logprobs
    scan, draw = tuned("logits", "partial_sums", vocab_size), tuned("logits", "logprobs", vocab_size)
    num_tiles = cdiv(vocab_size, scan["TILE"])
    best = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    total = torch.empty_like(best)
    launch(_partial_sums_kernel, (num_rows, num_tiles), logits, best, total, logits.stride(0), vocab_size, **scan)
    launch(
        _logprobs_kernel,
        (num_rows,),
        logits,
        best,
        total,
        token_ids,
        top,
        logprob,
        top_logprobs,
        logits.stride(0),
        num_tiles,
        num_top,
        TILES=power_of_two(num_tiles),
        TOP=max(32, power_of_two(num_top)),  # one variant for all that the OpenAI API allows
        **draw,
    )
    return logprob, top_ids, top_logprobs


@triton.jit(do_not_specialize_on_alignment=["repetition_ptr", "presence_ptr", "frequency_ptr"])
def _penalties_kernel(
    logits_ptr,
    count_ptr,
    prompt_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    logits_stride_b,
    count_stride_b,
    prompt_stride_b,
    V,
    TILE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = v < V
    x = tl.load(logits_ptr + b * logits_stride_b + v, mask=mask, other=0.0).to(tl.float32)
    count = tl.load(count_ptr + b * count_stride_b + v, mask=mask, other=0)
    prompt = tl.load(prompt_ptr + b * prompt_stride_b + v, mask=mask, other=0)
    repetition = tl.load(repetition_ptr + b)
    y = tl.where((prompt != 0) | (count > 0), tl.where(x > 0.0, x / repetition, x * repetition), x)
    y -= count.to(tl.float32) * tl.load(frequency_ptr + b)
    y -= tl.where(count > 0, tl.load(presence_ptr + b), 0.0)
    tl.store(logits_ptr + b * logits_stride_b + v, y.to(logits_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _partial_sums_kernel(logits_ptr, best_ptr, total_ptr, stride_b, V, TILE: tl.constexpr):
    """The best logit of each tile and the sum of exponentials relative to it."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1)
    v = n * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + b * stride_b + v, mask=v < V, other=float("-inf")).to(tl.float32)
    best = tl.max(x, axis=0)
    total = tl.sum(tl.where(v < V, tl.exp(_below(x, best)), 0.0), axis=0)
    to = b * tl.num_programs(1) + n
    tl.store(best_ptr + to, best)
    tl.store(total_ptr + to, total)


@triton.jit(do_not_specialize=["num_top"], do_not_specialize_on_alignment=["token_ids_ptr"])
def _logprobs_kernel(
    logits_ptr,
    best_ptr,
    total_ptr,
    token_ids_ptr,
    top_ptr,
    logprob_ptr,
    top_logprobs_ptr,
    stride_b,
    N,
    num_top,
    TILES: tl.constexpr,
    TOP: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, TILES)
    tile_best = tl.load(best_ptr + b * N + n, mask=n < N, other=float("-inf"))
    best = tl.max(tile_best, axis=0)
    partial = tl.load(total_ptr + b * N + n, mask=n < N, other=0.0)
    normaliser = tl.log(tl.sum(partial * tl.exp(_below(tile_best, best)), axis=0))
    token_id = tl.maximum(tl.load(token_ids_ptr + b).to(tl.int64), 0)
    chosen = tl.load(logits_ptr + b * stride_b + token_id).to(tl.float32)
    tl.store(logprob_ptr + b, _below(chosen, best) - normaliser)
    i = tl.arange(0, TOP)
    top = tl.load(top_ptr + b * num_top + i, mask=i < num_top, other=0.0).to(tl.float32)
    tl.store(top_logprobs_ptr + b * num_top + i, _below(top, best) - normaliser, mask=i < num_top)


@triton.jit
def _below(x, best):
    """x - best, with 0 where both are the same infinity."""
    return tl.where(x == best, 0.0, x - best)
