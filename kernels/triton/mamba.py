# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Mamba-2: causal convolution and state-space scan over requests side by side.

A request that brings one token moves its state on in one pass over it. One that brings more keeps its state in
registers while it walks its chunks, so that nothing between chunks goes through memory; heads and requests run beside
each other.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import (
    INTERPRETED,
    Options,
    cdiv,
    dot,
    launch,
    power_of_two,
    require_dtype,
    rows_of,
    tuned,
)

if TYPE_CHECKING:
    from sirocco.kernels.mamba import StateBatch

MAX_STATE = 256  # beyond it a head's state no longer fits the registers of one block of threads
MAX_TAPS = 17  # the first 16 tokens alone may look at the state before them: they are in one tile, which replaces it

# Parts of the step's tensors: where they begin depends on its lengths, which must not make variants.
WORK = ("slots_ptr", "has_state_ptr", "starts_ptr", "requests_ptr", "tiles_ptr")


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A step's requests as the kernels look them up, all int32 on the device."""

    starts: Tensor  # [B + 1] where the tokens of each begin
    runs: Tensor  # requests that bring more than one token
    singles: Tensor  # requests that bring one
    tiles: Tensor  # [X, 2] request, and position of the tile's first token in it


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, batch: "StateBatch") -> Tensor:
    """As `sirocco.kernels.mamba.causal_conv`; ValueError for other dtypes than 2- and 4-byte floats and odd strides."""
    require_dtype("causal_conv", x, weight, bias, states)
    rows = rows_of("causal_conv", x)
    channels, taps = weight.shape
    check_mamba(conv_width=taps)
    if rows.shape[1] != channels or states.shape[1:] != (channels, taps - 1):
        raise ValueError(
            f"causal_conv of {rows.shape[1]} channels needs as many weights and states, of one tap less, "
            f"not {tuple(weight.shape)} and {tuple(states.shape)}"
        )
    if not (weight.is_contiguous() and states.is_contiguous()):
        raise ValueError("causal_conv needs contiguous weights and states")
    out = _padded_like(x, batch)
    if not batch.num_tokens:
        return out
    work, options = _work(batch)
    launch(
        _conv_kernel,
        (cdiv(channels, options["BLOCK_D"]), len(work.tiles)),
        rows,
        weight,
        bias,
        states,
        out,
        batch.slots,
        batch.has_state,
        work.starts,
        work.tiles,
        rows.stride(0),
        channels,
        W=taps,
        BLOCK_W=power_of_two(taps - 1),
        **options,
    )
    return out


def state_space_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, batch: "StateBatch"
) -> Tensor:
    """As `sirocco.kernels.mamba.state_space_scan`; ValueError as `check_mamba` does, for odd strides and narrow states.

    States and sums are float32. Where a request brings several tokens, what is multiplied with b or c is rounded to
    their dtype first.
    """
    require_dtype("state_space_scan", x, dt, a, b, c, d)
    num_heads, head_dim, num_groups, state_size = *x.shape[1:], *b.shape[1:]
    check_mamba(state_size)
    if states.dtype != torch.float32 or not states.is_contiguous():
        raise ValueError(f"state_space_scan keeps contiguous states in float32, not {states.dtype}")
    flat = [rows_of("state_space_scan", _joined(part)) for part in (x, dt, b, c)]
    out = _padded_like(x, batch)
    operands = (*flat[:2], a.contiguous(), *flat[2:], d.contiguous(), states, out, batch.slots, batch.has_state)
    sizes = (*(part.stride(0) for part in flat), num_heads, head_dim, state_size, num_heads // num_groups)
    work, _ = _work(batch)
    block_n = power_of_two(state_size)
    if len(work.runs):
        options = tuned("mamba", "scan", block_n * (x.dtype.itemsize // 2))
        decay = _log_decay(flat[1], operands[2], work, max(batch.query_lens), options["CHUNK"])
        launch(
            _scan_kernel,
            (cdiv(head_dim, options["BLOCK_P"]), num_heads, len(work.runs)),
            *(*operands, work.starts, work.runs, decay, *sizes, decay.stride(1), decay.stride(0)),
            UPCAST=INTERPRETED,
            BLOCK_N=max(16, block_n),
            **options,
        )
    if len(work.singles):
        options = tuned("mamba", "update", block_n)
        launch(
            _update_kernel,
            (cdiv(head_dim, options["BLOCK_P"]), num_heads, len(work.singles)),
            *(*operands, work.starts, work.singles, *sizes),
            BLOCK_N=block_n,
            **options,
        )
    return out


def _log_decay(dt: Tensor, a: Tensor, work: Work, longest: int, chunk: int) -> Tensor:
    """Sums of dt a from the start of each chunk of the runs, in two parts that add up to more than float32 holds.

    [2, H, T] rather than the [T, H] of dt [T, H], so that a head's program finds a chunk in one place. Differences of
    sums kept in one part would cancel where decay is fast.
    """
    sums = torch.empty(2, dt.shape[1], len(dt), dtype=torch.float32, device=dt.device)
    options = tuned("mamba", "log_decay", dt.shape[1])
    launch(
        _log_decay_kernel,
        (cdiv(dt.shape[1], options["BLOCK_H"]), cdiv(longest, chunk), len(work.runs)),
        *(dt, a, sums, work.starts, work.runs, dt.stride(0), sums.stride(1), sums.stride(0), dt.shape[1]),
        CHUNK=chunk,
        **options,
    )
    return sums


def check_mamba(state_size: int = MAX_STATE, conv_width: int = MAX_TAPS) -> None:
    """Raise ValueError for a size of state or of convolution that the kernels cannot do."""
    if not 0 < state_size <= MAX_STATE:
        raise ValueError(f"there is no kernel for a Mamba state of {state_size}: 1 to {MAX_STATE}")
    if not 2 <= conv_width <= MAX_TAPS:
        raise ValueError(f"there is no kernel for a causal convolution of {conv_width} taps: 2 to {MAX_TAPS}")


def _padded_like(x: Tensor, batch: "StateBatch") -> Tensor:
    """Room for a result of x's shape, zero where no request has rows."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if batch.num_tokens < len(x):
        out[batch.num_tokens :].zero_()
    return out


def _joined(x: Tensor) -> Tensor:
    """x [T, ...] as [T, C]; ValueError where that takes a copy."""
    if x.dim() == 2:
        return x
    try:
        return x.view(len(x), math.prod(x.shape[1:]))
    except RuntimeError:
        raise ValueError(f"state_space_scan needs adjacent heads, not strides {x.stride()}") from None


def _work(batch: "StateBatch") -> tuple[Work, Options]:
    """The step's work, made once, and the options of the convolution that its tiles are cut for."""
    longest = max(batch.query_lens, default=1)
    options = tuned("mamba", "conv", longest)
    tile = options["BLOCK_T"]
    assert tile >= MAX_TAPS - 1 or longest <= 1, "a request's first tile must hold all tokens that see its state"
    work: Work | None = batch.work.get(tile)
    if work is None:
        work = batch.work[tile] = _make_work(batch.query_lens, tile, batch.slots.device)
    return work, options


def _make_work(query_lens: list[int], tile: int, device: torch.device) -> Work:
    lengths = np.array(query_lens, np.int64)
    if (lengths == 1).all():  # made on the device, without a copy; a static batch keeps it for all replays
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
        requests = starts[:-1]
        return Work(starts, requests[:0], requests, torch.stack((requests, torch.zeros_like(requests)), 1))
    counts = -(-lengths // tile)
    request = np.repeat(np.arange(len(lengths)), counts)
    position = (np.arange(len(request)) - np.repeat(counts.cumsum() - counts, counts)) * tile
    parts = [
        np.append(0, lengths.cumsum()),
        np.flatnonzero(lengths > 1),
        np.flatnonzero(lengths == 1),
        np.stack((request, position), 1).reshape(-1),
    ]
    host = torch.from_numpy(np.concatenate(parts).astype(np.int32))
    if device.type == "cuda":
        host = host.pin_memory()  # a copy from pageable memory would wait
    starts, runs, singles, tiles = host.to(device, non_blocking=True).split([len(part) for part in parts])
    return Work(starts, runs, singles, tiles.view(-1, 2))


@triton.jit(do_not_specialize_on_alignment=WORK)
def _conv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    states_ptr,
    out_ptr,
    slots_ptr,
    has_state_ptr,
    starts_ptr,
    tiles_ptr,
    x_stride_t,
    D,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    tile = tl.program_id(1)
    request = tl.load(tiles_ptr + 2 * tile)
    first = tl.load(tiles_ptr + 2 * tile + 1)
    start = tl.load(starts_ptr + request)
    length = tl.load(starts_ptr + request + 1) - start
    oldest = -(W - 1) * tl.load(has_state_ptr + request).to(tl.int32)  # position of the first input there is
    state_ptrs = states_ptr + (tl.load(slots_ptr + request).to(tl.int64) * D + d) * (W - 1)
    tile_ptrs = x_ptr + (start + first).to(tl.int64) * x_stride_t + d  # t * stride outgrows int32
    t = tl.arange(0, BLOCK_T)[:, None]
    live = (first + t < length) & (d < D)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for i in range(W):
        back = t + (i - (W - 1))
        x = tl.load(tile_ptrs + back * x_stride_t, mask=live & (first + back >= 0), other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + d * W + i, mask=d < D, other=0.0).to(tl.float32)
        acc += x * weight
        if first == 0:
            old = tl.load(state_ptrs + (t + i), mask=live & (back < 0) & (back >= oldest), other=0.0).to(tl.float32)
            acc += old * weight
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + (start + first).to(tl.int64) * D + t * D + d
    tl.store(out_ptrs, (acc * tl.sigmoid(acc)).to(out_ptr.dtype.element_ty), mask=live)
    if first == 0:
        w = tl.arange(0, BLOCK_W)[:, None]
        back = w - (W - 1)
        kept = (w < W - 1) & (d < D)
        end_ptrs = x_ptr + (start + length).to(tl.int64) * x_stride_t + d
        x = tl.load(end_ptrs + back * x_stride_t, mask=kept & (length + back >= 0), other=0.0)
        seen = kept & (length + back < 0) & (length + back >= oldest)
        old = tl.load(state_ptrs + (length + w), mask=seen, other=0.0)
        new = tl.where(length + back >= 0, x.to(states_ptr.dtype.element_ty), old)
        tl.debug_barrier()  # a thread may replace what another has yet to read
        tl.store(state_ptrs + w, new, mask=kept)


@triton.jit(do_not_specialize=["sums_stride_h", "sums_stride_part"], do_not_specialize_on_alignment=WORK)
def _log_decay_kernel(
    dt_ptr,
    a_ptr,
    sums_ptr,
    starts_ptr,
    requests_ptr,
    dt_stride_t,
    sums_stride_h,
    sums_stride_part,
    H,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    request = tl.load(requests_ptr + tl.program_id(2))
    stop = tl.load(starts_ptr + request + 1)
    first = tl.load(starts_ptr + request) + tl.program_id(1) * CHUNK
    h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    t = first + tl.arange(0, CHUNK)
    mask = (t < stop)[:, None] & (h < H)[None, :]
    a = tl.load(a_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    dt_ptrs = dt_ptr + t.to(tl.int64)[:, None] * dt_stride_t + h[None, :]  # t * stride outgrows int32
    steps = tl.load(dt_ptrs, mask=mask, other=0.0).to(tl.float32) * a[None, :]
    sums = tl.cumsum(steps.to(tl.float64), 0)
    high = sums.to(tl.float32)
    sums_ptrs = sums_ptr + h.to(tl.int64)[None, :] * sums_stride_h + t[:, None]
    tl.store(sums_ptrs, high, mask=mask)
    tl.store(sums_ptrs + sums_stride_part, (sums - high.to(tl.float64)).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["sums_stride_h", "sums_stride_part"], do_not_specialize_on_alignment=WORK)
def _scan_kernel(
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    states_ptr,
    out_ptr,
    slots_ptr,
    has_state_ptr,
    starts_ptr,
    requests_ptr,
    sums_ptr,
    x_stride_t,
    dt_stride_t,
    b_stride_t,
    c_stride_t,
    H,
    P,
    N,
    heads_each,
    sums_stride_h,
    sums_stride_part,
    UPCAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    h = tl.program_id(1)
    request = tl.load(requests_ptr + tl.program_id(2))
    start = tl.load(starts_ptr + request)
    stop = tl.load(starts_ptr + request + 1)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    known = tl.load(has_state_ptr + request).to(tl.int32)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    l = tl.arange(0, CHUNK)  # noqa: E741
    inside = (n < N)[:, None] & (p < P)[None, :]
    state_ptrs = states_ptr + ((slot * H + h) * P + p)[None, :] * N + n[:, None]
    state = tl.load(state_ptrs, mask=inside & (n < N * known)[:, None], other=0.0)  # [N, P]
    skip = tl.load(d_ptr + h).to(tl.float32)
    shared = (h // heads_each) * N
    sums_ptr += h.to(tl.int64) * sums_stride_h
    for first in range(start, stop, CHUNK):
        # Addresses are made anew for each chunk: kept from one to the next they would take a third of the registers.
        t = (first + l).to(tl.int64)  # t * stride outgrows int32
        live = t < stop
        dt = tl.load(dt_ptr + t * dt_stride_t + h, mask=live, other=0.0).to(tl.float32)
        high = tl.load(sums_ptr + t, mask=live, other=0.0)
        low = tl.load(sums_ptr + sums_stride_part + t, mask=live, other=0.0)
        c_ptrs = c_ptr + (t * c_stride_t + shared)[:, None] + n[None, :]
        c = tl.load(c_ptrs, mask=live[:, None] & (n < N)[None, :], other=0.0)  # [L, N]
        y = dot(c, state.to(c.dtype), tl.zeros((CHUNK, BLOCK_P), tl.float32), UPCAST) * tl.exp(high)[:, None]
        b_ptrs = b_ptr + (t * b_stride_t + shared)[None, :] + n[:, None]
        b = tl.load(b_ptrs, mask=live[None, :] & (n < N)[:, None], other=0.0)  # [N, L]
        scores = dot(c, b, tl.zeros((CHUNK, CHUNK), tl.float32), UPCAST)
        between = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])  # from column to row
        scores *= tl.exp(tl.where(l[:, None] >= l[None, :], between, -float("inf")))
        x_ptrs = x_ptr + (t * x_stride_t + h * P)[:, None] + p[None, :]
        x = tl.load(x_ptrs, mask=live[:, None] & (p < P)[None, :], other=0.0).to(tl.float32)  # [L, P]
        inputs = x * dt[:, None]
        y = dot(scores.to(c.dtype), inputs.to(c.dtype), y, UPCAST) + skip * x
        out_ptrs = out_ptr + ((t * H + h) * P)[:, None] + p[None, :]
        tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=live[:, None] & (p < P)[None, :])
        last = tl.minimum(first + CHUNK, stop) - 1
        last_high = tl.load(sums_ptr + last)
        inputs *= tl.exp((last_high - high) + (tl.load(sums_ptr + sums_stride_part + last) - low))[:, None]
        state = dot(b, inputs.to(b.dtype), state * tl.exp(last_high), UPCAST)
    tl.store(state_ptrs, state, mask=inside)


@triton.jit(do_not_specialize_on_alignment=WORK)
def _update_kernel(
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    states_ptr,
    out_ptr,
    slots_ptr,
    has_state_ptr,
    starts_ptr,
    requests_ptr,
    x_stride_t,
    dt_stride_t,
    b_stride_t,
    c_stride_t,
    H,
    P,
    N,
    heads_each,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    h = tl.program_id(1)
    request = tl.load(requests_ptr + tl.program_id(2))
    t = tl.load(starts_ptr + request).to(tl.int64)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    known = tl.load(has_state_ptr + request).to(tl.int32)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    state_ptrs = states_ptr + ((slot * H + h) * P + p)[:, None] * N + n[None, :]
    state = tl.load(state_ptrs, mask=inside & (n < N * known)[None, :], other=0.0)
    dt = tl.load(dt_ptr + t * dt_stride_t + h).to(tl.float32)
    x = tl.load(x_ptr + t * x_stride_t + h * P + p, mask=p < P, other=0.0).to(tl.float32)
    shared = (h // heads_each) * N + n
    b = tl.load(b_ptr + t * b_stride_t + shared, mask=n < N, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + t * c_stride_t + shared, mask=n < N, other=0.0).to(tl.float32)
    state = state * tl.exp(dt * tl.load(a_ptr + h).to(tl.float32)) + (dt * x)[:, None] * b[None, :]
    tl.store(state_ptrs, state, mask=inside)
    y = tl.sum(state * c[None, :], 1) + tl.load(d_ptr + h).to(tl.float32) * x
    tl.store(out_ptr + (t * H + h) * P + p, y.to(out_ptr.dtype.element_ty), mask=p < P)
