# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Drawing tokens by the rule of `sirocco.kernels.sampling`, without sorting the vocabulary or waiting for the device.

A row is cut into at most 512 chunks. One pass over all logits leaves the best of each chunk and, unless top-k makes it
useless, its mass: 12 bytes a chunk, so for 256 rows of 151936 float32 logits 1 MB beside 156 MB. After it one program
a row draws. It reads again

- one chunk of a greedy row, or of one without filters;
- where min-p alone filters, the chunks whose best it keeps, and then one;
- where top-k or top-p does, the chunks that reach the bound, for their tokens from it on, the candidates: of n chunks
  the k best, or as many of the best as reach top-p by their bests alone, and 15/16 or 3/4 of n at most, but all of a
  vocabulary that is no larger than the candidates may be. Candidates are read as 8 bytes each.

Only a row whose filter reaches below its candidates, as top-p of a flat distribution, is read again as a whole, and
some twenty times: its threshold is found two bits at a time.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.sampling import chunk_size
from sirocco.kernels.triton.common import cdiv, launch, require_dtype, tuned
from sirocco.kernels.triton.filters import draw_filtered
from sirocco.kernels.triton.masses import (
    PER_ROW,
    crossing,
    fraction,
    from_key,
    in_row,
    least_logit,
    mass_of,
    nucleus,
    row_best,
    row_total,
    slope_of,
    to_key,
    uniform_bits,
    weightless,
)

if TYPE_CHECKING:
    from sirocco.kernels.sampling import SamplingTensors

CHUNKS = 512
CANDIDATES = 2048
MAX_VOCAB = 1 << 21
_WARP_BYTES = 512  # that a warp loads at once
_SHARES = 8  # programs that gather a row's candidates; of top-k 50 each has the chunks of about one tile


def sample(logits: Tensor, params: "SamplingTensors") -> Tensor:
    """As `sirocco.kernels.sampling.sample`; ValueError for float64, gaps between columns and 2**21 tokens."""
    require_dtype("sample", logits)
    num_rows, vocab_size = logits.shape
    if not 0 < vocab_size < MAX_VOCAB or logits.stride(1) != 1:
        raise ValueError(f"sample needs rows of 1 to {MAX_VOCAB - 1} adjacent logits, not of {vocab_size}")
    chunk = chunk_size(vocab_size)
    num_chunks = cdiv(vocab_size, chunk)
    device = logits.device
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    if not num_rows:
        return tokens
    scan, collect, draw = (tuned("sampling", kernel, vocab_size) for kernel in ("scan", "collect", "draw"))
    by_tile = (num_rows, cdiv(vocab_size, scan["TILE"]))
    row = (logits.stride(0), vocab_size, num_chunks)
    filters = (params.temperature, params.top_k, params.top_p, params.min_p)

    best = torch.empty((num_rows, num_chunks), dtype=torch.float32, device=device)
    mass = None if params.greedy else torch.empty((num_rows, num_chunks), dtype=torch.int64, device=device)
    lanes = {"LANES": min(chunk, _WARP_BYTES // logits.itemsize)}
    launch(_chunks_kernel, by_tile, logits, best, mass, *filters[:2], *row, CHUNK=chunk, **scan, **lanes)
    if params.uses_min_p and not params.greedy:
        options = {"CHUNKS": CHUNKS, **scan, **lanes}
        launch(_min_p_kernel, by_tile, logits, best, mass, *filters, *row, CHUNK=chunk, **options)
    bound = count = values = ids = None
    if not params.greedy and (params.uses_top_k or params.uses_top_p):
        bound = torch.empty(num_rows, dtype=torch.float32, device=device)
        num_hot, count = (torch.empty(num_rows, dtype=torch.int32, device=device) for _ in range(2))
        hot = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=device)
        values = torch.empty((num_rows, CANDIDATES), dtype=torch.float32, device=device)
        ids = torch.empty((num_rows, CANDIDATES), dtype=torch.int32, device=device)
        found = (best, mass, bound, hot, num_hot, count)
        options = {"CHUNKS": CHUNKS, "CANDIDATES": CANDIDATES, "num_warps": draw["num_warps"]}
        launch(_bound_kernel, (num_rows,), *found, *filters[:3], *row[1:], **options)
        collect = {**collect, "TILE": max(chunk, collect["TILE"])}
        by_share = (num_rows, min(_SHARES, cdiv(vocab_size, collect["TILE"])))
        gathered = (logits, bound, hot, num_hot, count, values, ids)
        launch(_collect_kernel, by_share, *gathered, *row, CHUNK=chunk, CANDIDATES=CANDIDATES, **collect)
    drawn = (logits, best, mass, bound, count, values, ids, *filters, params.seed, params.position, tokens)
    launch(_draw_kernel, (num_rows,), *drawn, *row, CHUNK=chunk, CHUNKS=CHUNKS, CANDIDATES=CANDIDATES, **draw)
    return tokens


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def _chunks_kernel(
    logits_ptr,
    best_ptr,
    mass_ptr,
    temperature_ptr,
    top_k_ptr,
    stride_b,
    V,
    N,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    """The best logit of each chunk, NaN where there is one, and the mass relative to it in rows without top-k."""
    b = tl.program_id(0).to(tl.int64)  # b * stride outgrows int32
    n = tl.program_id(1) * (TILE // CHUNK) + tl.arange(0, TILE // CHUNK)
    v = _columns(n, CHUNK, LANES)
    x = tl.load(logits_ptr + b * stride_b + v, mask=v < V, other=float("-inf")).to(tl.float32)
    best = tl.max(tl.max(x, axis=0), axis=1)
    broken = tl.max(tl.max((x != x).to(tl.int32), axis=0), axis=1) > 0  # a maximum passes over NaN
    tl.store(best_ptr + b * N + n, tl.where(broken, float("nan"), best), mask=n < N)
    if mass_ptr is not None:
        temperature = tl.load(temperature_ptr + b)
        if (temperature > 0.0) & (tl.load(top_k_ptr + b) <= 0):
            mass = mass_of(x, best[None, :, None], slope_of(temperature)).to(tl.int64)
            mass = tl.sum(tl.sum(mass, axis=0), axis=1)
            tl.store(mass_ptr + b * N + n, mass, mask=n < N)


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def _min_p_kernel(
    logits_ptr,
    best_ptr,
    mass_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    stride_b,
    V,
    N,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    """The mass of what min-p keeps of each chunk, in rows where it is the only filter."""
    b = tl.program_id(0).to(tl.int64)
    temperature, min_p = tl.load(temperature_ptr + b), tl.load(min_p_ptr + b)
    alone = (tl.load(top_k_ptr + b) <= 0) & (tl.load(top_p_ptr + b) >= 1.0)
    if alone & (min_p > 0.0) & (temperature > 0.0):
        _, best, failed = row_best(best_ptr + b * N, N, CHUNKS)
        if not failed:
            least = least_logit(best, temperature, min_p)
            n = tl.program_id(1) * (TILE // CHUNK) + tl.arange(0, TILE // CHUNK)
            chunk_best = tl.load(best_ptr + b * N + n, mask=n < N, other=float("-inf"))
            v = _columns(n, CHUNK, LANES)
            hot = (chunk_best >= least)[None, :, None] & (v < V)
            x = tl.load(logits_ptr + b * stride_b + v, mask=hot, other=float("-inf")).to(tl.float32)
            mass = mass_of(x, chunk_best[None, :, None], slope_of(temperature)).to(tl.int64)
            mass = tl.where(hot & (x >= least), mass, 0)
            tl.store(mass_ptr + b * N + n, tl.sum(tl.sum(mass, axis=0), axis=1), mask=n < N)


@triton.jit
def _columns(n, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """The columns of chunks n, in an order of axes by which one warp has all of a chunk and reduces it alone."""
    part, lane = tl.arange(0, CHUNK // LANES), tl.arange(0, LANES)
    return n[None, :, None] * CHUNK + part[:, None, None] * LANES + lane[None, None, :]


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def _bound_kernel(
    best_ptr,
    mass_ptr,
    bound_ptr,
    hot_ptr,
    num_hot_ptr,
    count_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    V,
    N,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The bound of a row and the list of its chunks that reach it; none where there is nothing to filter."""
    b = tl.program_id(0).to(tl.int64)
    chunk_best, best, failed = row_best(best_ptr + b * N, N, CHUNKS)
    temperature, top_k, top_p = tl.load(temperature_ptr + b), tl.load(top_k_ptr + b), tl.load(top_p_ptr + b)
    num_hot = tl.full((), 0, tl.int32)
    if not (failed | (temperature <= 0.0) | ((top_k <= 0) & (top_p >= 1.0))):
        n = tl.arange(0, CHUNKS)
        bound = weightless(best, temperature)  # after a grammar's mask most tokens are -inf
        if V > CANDIDATES:  # or else all tokens are candidates
            keys = to_key(chunk_best)
            # Random logits put n * ln(n / (n - rank)) of n chunks' tokens above the rank-th chunk: 1.4 n or 2.8 n here.
            rank = tl.where(top_k > 0, tl.minimum(top_k, N - N // 16), N - N // 4)
            key = crossing(keys, (n < N).to(tl.int32), rank, 20)
            if top_k <= 0:
                slope = slope_of(temperature)
                # Bests that reach top-p by themselves need no other chunk; a little more than that, for rounding.
                need = nucleus(row_total(mass_ptr + b * N, chunk_best, best, slope, N, CHUNKS), top_p).to(tl.float32)
                key = tl.maximum(key, crossing(keys, mass_of(chunk_best, best, slope), need * 1.0001, 20))
            rank_bound = from_key(key)
            bound = tl.where(rank_bound > bound, rank_bound, bound)  # the least keys are NaN
        hot = ((n < N) & (chunk_best >= bound)).to(tl.int32)
        tl.store(hot_ptr + b * N + tl.cumsum(hot, axis=0) - 1, n, mask=hot > 0)
        tl.store(bound_ptr + b, bound)
        num_hot = tl.sum(hot, axis=0)
    tl.store(num_hot_ptr + b, num_hot)
    tl.store(count_ptr + b, 0)


@triton.jit
def _collect_kernel(
    logits_ptr,
    bound_ptr,
    hot_ptr,
    num_hot_ptr,
    count_ptr,
    value_ptr,
    id_ptr,
    stride_b,
    V,
    N,
    CHUNK: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gather the tokens from the bound on, in any order: what is done with them does not depend on it."""
    b = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * (TILE // CHUNK)
    num_hot = tl.load(num_hot_ptr + b)
    if first < num_hot:
        bound = tl.load(bound_ptr + b)
        row_ptr, values_ptr, ids_ptr = logits_ptr + b * stride_b, value_ptr + b * CANDIDATES, id_ptr + b * CANDIDATES
        for start in range(first, num_hot, tl.num_programs(1) * (TILE // CHUNK)):
            i = start + tl.arange(0, TILE // CHUNK)
            n = tl.load(hot_ptr + b * N + i, mask=i < num_hot, other=N)
            v = n[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
            x = tl.load(row_ptr + v, mask=v < V, other=float("nan")).to(tl.float32)
            chosen = x >= bound  # one or two tokens of a chunk
            place = tl.atomic_add(count_ptr + b + tl.zeros_like(v), 1, mask=chosen, sem="relaxed")
            fits = chosen & (place < CANDIDATES)
            tl.store(values_ptr + place, x, mask=fits)
            tl.store(ids_ptr + place, v, mask=fits)


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def _draw_kernel(
    logits_ptr,
    best_ptr,
    mass_ptr,
    bound_ptr,
    count_ptr,
    value_ptr,
    id_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    token_ptr,
    stride_b,
    V,
    N,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + b * stride_b
    chunk_best, best, failed = row_best(best_ptr + b * N, N, CHUNKS)
    temperature = tl.load(temperature_ptr + b)
    top_k, top_p, min_p = tl.load(top_k_ptr + b), tl.load(top_p_ptr + b), tl.load(min_p_ptr + b)
    token = tl.full((), -1, tl.int64)
    if not failed:
        if temperature <= 0.0:
            token = _first_best(row_ptr, chunk_best, best, V, CHUNK, CHUNKS)
        elif mass_ptr is not None:
            bits = uniform_bits(seed_ptr + b, position_ptr + b)
            least = least_logit(best, temperature, min_p)
            if (top_k <= 0) & (top_p >= 1.0):
                slope = slope_of(temperature)
                token = _draw_by_chunk(
                    row_ptr, chunk_best, mass_ptr + b * N, best, slope, least, bits, V, N, CHUNK, CHUNKS
                )
            elif count_ptr is not None:
                total = tl.full((), 0, tl.int64)
                if top_k <= 0:
                    total = row_total(mass_ptr + b * N, chunk_best, best, slope_of(temperature), N, CHUNKS)
                token = draw_filtered(
                    row_ptr,
                    value_ptr + b * CANDIDATES,
                    id_ptr + b * CANDIDATES,
                    tl.load(count_ptr + b),
                    tl.load(bound_ptr + b) <= weightless(best, temperature),
                    best,
                    temperature,
                    top_k,
                    top_p,
                    least,
                    bits,
                    total,
                    V,
                    CANDIDATES,
                    TILE,
                )
    tl.store(token_ptr + b, token)


@triton.jit
def _first_best(row_ptr, chunk_best, best, V, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    n = tl.min(tl.where(chunk_best == best, tl.arange(0, CHUNKS), CHUNKS), axis=0)
    v = n * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row_ptr + v, mask=v < V, other=float("nan")).to(tl.float32)
    return tl.min(tl.where(x == best, v, V - 1), axis=0).to(tl.int64)


@triton.jit
def _draw_by_chunk(
    row_ptr, chunk_best, mass_ptr, best, slope, least, bits, V, N, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """The first chunk whose cumulative mass exceeds the drawn share of the total, then the token in it."""
    n = tl.arange(0, CHUNKS)
    mass = in_row(tl.load(mass_ptr + n, mask=n < N, other=0), chunk_best, best, slope)
    target = fraction(tl.sum(mass, axis=0), bits)
    chunk = tl.minimum(tl.sum((tl.cumsum(mass, axis=0) <= target).to(tl.int32), axis=0), N - 1)
    before = tl.sum(tl.where(n < chunk, mass, 0), axis=0)
    v = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
    own_best = tl.max(tl.where(n == chunk, chunk_best, float("-inf")), axis=0)
    kept = tl.where((v < V) & (x >= least), mass_of(x, own_best, slope).to(tl.int64), 0)
    within = in_row(tl.cumsum(kept, axis=0), own_best, best, slope)
    rest = tl.minimum(target - before, tl.max(within, axis=0) - 1)  # were the sums to differ, no token without mass
    passed = tl.sum((within <= rest).to(tl.int32), axis=0)
    return tl.minimum(chunk * CHUNK + passed, V - 1).to(tl.int64)
