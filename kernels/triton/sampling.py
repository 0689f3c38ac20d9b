# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Drawing tokens by the rule of `sirocco.kernels.sampling`, without sorting the vocabulary or waiting for the device.

A row is cut into at most 512 chunks. The best logit of each is found in one pass over the row; where top-k or top-p
apply, the k-th of those is a threshold above which at least k tokens lie, and only chunks that reach it are read again.
Their tokens above it, some hundreds, are searched in registers. The rare row whose filter reaches further is searched
as a whole, by bisecting the bits of the threshold.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import cdiv, launch, power_of_two, require_dtype, tuned

if TYPE_CHECKING:
    from sirocco.kernels.sampling import SamplingTensors

CHUNKS = 512
CANDIDATES = 2048
MAX_VOCAB = 1 << 21

_ONE = tl.constexpr(1 << 40)  # the best token's mass
_UNIT = tl.constexpr(1 << 24)  # uniform numbers and top-p are whole numbers of 2**-24
_UNSETTLED = tl.constexpr(-2)
_WEIGHTLESS = tl.constexpr(28.5)  # so many temperatures below the best a token has no mass: exp(-28.5) < 2**-41
_LOWEST = tl.constexpr(-3.4e38)

# A value a row: its address must not choose a variant, and nothing is gained from knowing it aligned.
_PER_ROW = ["temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "seed_ptr", "position_ptr", "token_ptr"]


def sample(logits: Tensor, params: "SamplingTensors") -> Tensor:
    """As `sirocco.kernels.sampling.sample`; ValueError for float64, gaps between columns and 2**21 tokens."""
    require_dtype("sample", logits)
    num_rows, vocab_size = logits.shape
    if not 0 < vocab_size < MAX_VOCAB or logits.stride(1) != 1:
        raise ValueError(f"sample needs rows of 1 to {MAX_VOCAB - 1} adjacent logits, not of {vocab_size}")
    chunk = max(16, power_of_two(cdiv(vocab_size, CHUNKS)))
    num_chunks = cdiv(vocab_size, chunk)
    device = logits.device
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    if not num_rows:
        return tokens
    scan, draw = tuned("sampling", "scan", vocab_size), tuned("sampling", "draw", vocab_size)
    by_tile = (num_rows, cdiv(vocab_size, scan["TILE"]))
    row = (logits.stride(0), vocab_size, num_chunks)

    best = torch.empty((num_rows, num_chunks), dtype=torch.float32, device=device)
    launch(_chunk_best_kernel, by_tile, logits, best, *row, CHUNK=chunk, **scan)
    mass = bounds = counts = values = ids = None
    filters = (params.temperature, params.top_k, params.top_p, params.min_p)
    if not params.greedy:
        mass = torch.empty((num_rows, num_chunks), dtype=torch.int64, device=device)
        launch(_chunk_mass_kernel, by_tile, logits, best, mass, *filters, *row, CHUNK=chunk, CHUNKS=CHUNKS, **scan)
    filtered = not params.greedy and (params.uses_top_k or params.uses_top_p)
    if filtered:
        bounds = torch.empty(num_rows, dtype=torch.float32, device=device)
        counts = torch.empty(num_rows, dtype=torch.int32, device=device)
        values = torch.empty((num_rows, CANDIDATES), dtype=torch.float32, device=device)
        ids = torch.empty((num_rows, CANDIDATES), dtype=torch.int32, device=device)
        bound_options = {"CHUNKS": CHUNKS, "CANDIDATES": CANDIDATES, **draw}
        launch(_bound_kernel, (num_rows,), best, bounds, counts, *filters[:3], *row[1:], **bound_options)
        collected = (logits, best, bounds, counts, values, ids)
        launch(_collect_kernel, by_tile, *collected, *row, CHUNK=chunk, CANDIDATES=CANDIDATES, **scan)
    drawn = (logits, best, mass, bounds, counts, values, ids, *filters, params.seed, params.position, tokens)
    sizes = {"CHUNK": chunk, "CHUNKS": CHUNKS, "CANDIDATES": CANDIDATES}
    launch(_draw_kernel, (num_rows,), *drawn, *row, **sizes, **draw)
    if filtered:
        searched = (logits, best, *filters, params.seed, params.position, tokens)
        search = tuned("sampling", "search", vocab_size)
        launch(_search_kernel, (num_rows,), *searched, *row, CHUNKS=CHUNKS, **search)
    return tokens


@triton.jit
def _chunk_best_kernel(logits_ptr, best_ptr, stride_b, V, N, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """The best logit of each chunk; NaN where there is one."""
    b = tl.program_id(0).to(tl.int64)  # b * stride outgrows int32
    n = tl.program_id(1) * (TILE // CHUNK) + tl.arange(0, TILE // CHUNK)
    v = n[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = tl.load(logits_ptr + b * stride_b + v, mask=v < V, other=float("-inf")).to(tl.float32)
    broken = tl.max((x != x).to(tl.int32), axis=1) > 0  # a maximum passes over NaN
    best = tl.where(broken, float("nan"), tl.max(x, axis=1))
    tl.store(best_ptr + b * N + n, best, mask=n < N)


@triton.jit(do_not_specialize_on_alignment=_PER_ROW)
def _chunk_mass_kernel(
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
):
    """The mass of each chunk of rows without top-k; min-p is off in it while top-p has yet to be applied."""
    b = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + b)
    if temperature <= 0.0:
        return
    if tl.load(top_k_ptr + b) > 0:
        return
    _, best, failed = _row_best(best_ptr + b * N, N, CHUNKS)
    if failed:
        return
    least = tl.where(tl.load(top_p_ptr + b) < 1.0, 0.0, tl.load(min_p_ptr + b) * _ONE)
    n = tl.program_id(1) * (TILE // CHUNK) + tl.arange(0, TILE // CHUNK)
    v = n[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = tl.load(logits_ptr + b * stride_b + v, mask=v < V, other=float("-inf")).to(tl.float32)
    mass = tl.sum(_kept_mass(x, best, temperature, least, v < V), axis=1)
    tl.store(mass_ptr + b * N + n, mass, mask=n < N)


@triton.jit(do_not_specialize_on_alignment=_PER_ROW)
def _bound_kernel(
    best_ptr,
    bound_ptr,
    count_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    V,
    N,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The logit from which on a row's tokens are candidates; none where there is nothing to filter."""
    b = tl.program_id(0)
    chunk_best, best, failed = _row_best(best_ptr + b.to(tl.int64) * N, N, CHUNKS)
    temperature, top_k = tl.load(temperature_ptr + b), tl.load(top_k_ptr + b)
    unfiltered = (top_k <= 0) & (tl.load(top_p_ptr + b) >= 1.0)
    bound = tl.full((), float("-inf"), tl.float32)  # a small vocabulary is searched whole
    if V > CANDIDATES:
        # Random logits put n * ln(n / (n - rank)) of n chunks' tokens above the rank-th chunk: 1.4 n or 2.8 n here.
        rank = tl.where(top_k > 0, tl.minimum(top_k, N - N // 16), N - N // 4)
        one = (tl.arange(0, CHUNKS) < N).to(tl.int32)
        bound = _from_key(_crossing(_to_key(chunk_best), one, rank))
    bound = tl.maximum(bound, _weightless(best, temperature))  # after a grammar's mask most tokens are -inf
    nothing = failed | unfiltered | (temperature <= 0.0)
    tl.store(bound_ptr + b, tl.where(nothing, float("nan"), bound))
    tl.store(count_ptr + b, 0)


@triton.jit
def _collect_kernel(
    logits_ptr,
    best_ptr,
    bound_ptr,
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
    bound = tl.load(bound_ptr + b)  # NaN lets nothing pass
    n = tl.program_id(1) * (TILE // CHUNK) + tl.arange(0, TILE // CHUNK)
    hot = tl.load(best_ptr + b * N + n, mask=n < N, other=float("nan")) >= bound
    if tl.max(hot.to(tl.int32), axis=0) == 0:
        return
    v = n[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = tl.load(logits_ptr + b * stride_b + v, mask=hot[:, None] & (v < V), other=float("nan")).to(tl.float32)
    chosen = x >= bound
    found = tl.sum(chosen.to(tl.int32), axis=1)
    total = tl.sum(found, axis=0)
    place = tl.cumsum(chosen.to(tl.int32), axis=1) - 1 + (tl.cumsum(found, axis=0) - found)[:, None]
    place += tl.atomic_add(count_ptr + b, total)
    fits = chosen & (place < CANDIDATES)
    tl.store(value_ptr + b * CANDIDATES + place, x, mask=fits)
    tl.store(id_ptr + b * CANDIDATES + place, v, mask=fits)


@triton.jit(do_not_specialize_on_alignment=_PER_ROW)
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
):
    b = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + b * stride_b
    chunk_best, best, failed = _row_best(best_ptr + b * N, N, CHUNKS)
    temperature = tl.load(temperature_ptr + b)
    top_k, top_p, min_p = tl.load(top_k_ptr + b), tl.load(top_p_ptr + b), tl.load(min_p_ptr + b)
    token = tl.full((), -1, tl.int64)
    if not failed:
        if temperature <= 0.0:
            token = _first_best(row_ptr, chunk_best, best, V, CHUNK, CHUNKS)
        elif mass_ptr is not None:
            bits = _uniform_bits(seed_ptr + b, position_ptr + b)
            if (top_k <= 0) & (top_p >= 1.0):
                chunk_mass_ptr = mass_ptr + b * N
                token = _draw_from_chunks(row_ptr, chunk_mass_ptr, best, temperature, min_p, bits, V, N, CHUNK, CHUNKS)
            elif count_ptr is not None:
                total = tl.full((), 0, tl.int64)  # of all tokens, known where top-p alone chooses
                if top_k <= 0:
                    n = tl.arange(0, CHUNKS)
                    total = tl.sum(tl.load(mass_ptr + b * N + n, mask=n < N, other=0), axis=0)
                count = tl.load(count_ptr + b)
                complete = tl.load(bound_ptr + b) <= _weightless(best, temperature)
                x_ptr, ids_ptr = value_ptr + b * CANDIDATES, id_ptr + b * CANDIDATES
                token = _draw_from_candidates(
                    x_ptr, ids_ptr, count, complete, best, temperature, top_k, top_p, min_p, bits, total, V, CANDIDATES
                )
    tl.store(token_ptr + b, token)


@triton.jit
def _first_best(row_ptr, chunk_best, best, V, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    n = tl.min(tl.where(chunk_best == best, tl.arange(0, CHUNKS), CHUNKS), axis=0)
    v = n * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row_ptr + v, mask=v < V, other=float("nan")).to(tl.float32)
    return tl.min(tl.where(x == best, v, V - 1), axis=0).to(tl.int64)


@triton.jit
def _draw_from_chunks(
    row_ptr, mass_ptr, best, temperature, min_p, bits, V, N, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """The first chunk whose cumulative mass exceeds the drawn share of the total, then the token in it."""
    n = tl.arange(0, CHUNKS)
    mass = tl.load(mass_ptr + n, mask=n < N, other=0)
    target = _fraction(tl.sum(mass, axis=0), bits)
    chunk = tl.minimum(tl.sum((tl.cumsum(mass, axis=0) <= target).to(tl.int32), axis=0), N - 1)
    before = tl.sum(tl.where(n < chunk, mass, 0), axis=0)
    v = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
    within = tl.cumsum(_kept_mass(x, best, temperature, min_p * _ONE, v < V), axis=0)
    passed = tl.sum((before + within <= target).to(tl.int32), axis=0)
    return tl.minimum(chunk * CHUNK + tl.minimum(passed, CHUNK - 1), V - 1).to(tl.int64)


@triton.jit
def _draw_from_candidates(
    value_ptr, id_ptr, count, complete, best, temperature, top_k, top_p, min_p, bits, total, V, CANDIDATES: tl.constexpr
):
    """A token, or _UNSETTLED where tokens that are no candidates may be kept; `complete` when those have no mass."""
    o = tl.arange(0, CANDIDATES)
    there = o < count
    x = tl.load(value_ptr + o, mask=there, other=float("-inf"))
    ids = tl.load(id_ptr + o, mask=there, other=V)
    keys = tl.where(there, _to_key(x), -2147483648)
    settled = count <= CANDIDATES
    if top_k > 0:
        settled = settled & (complete | (count >= tl.minimum(top_k, V)))
        there = there & (keys >= _crossing(keys, there.to(tl.int32), tl.minimum(top_k, count)))
    share = _mass(x, best, temperature)
    mass = tl.where(there, share.to(tl.int64), 0)
    if top_p < 1.0:
        reached = tl.sum(mass, axis=0)
        if top_k > 0:
            total = reached
        need = _nucleus(total, top_p)
        settled = settled & (reached >= need)
        mass = tl.where(keys >= _crossing(keys, mass, tl.minimum(need, reached)), mass, 0)
    mass = tl.where(share >= min_p * _ONE, mass, 0)
    target = _fraction(tl.sum(mass, axis=0), bits)
    token = tl.full((), 0, tl.int32)  # the greatest with at most the target's mass before it
    for i in range(21):
        further = token + (1 << (20 - i))
        token = tl.where(tl.sum(tl.where(ids < further, mass, 0), axis=0) <= target, further, token)
    return tl.where(settled, token, _UNSETTLED).to(tl.int64)


@triton.jit(do_not_specialize_on_alignment=_PER_ROW)
def _search_kernel(
    logits_ptr,
    best_ptr,
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
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Rows that the candidates did not settle: the same rule over the whole row."""
    b = tl.program_id(0).to(tl.int64)
    if tl.load(token_ptr + b) != _UNSETTLED:
        return
    row_ptr = logits_ptr + b * stride_b
    _, best, _ = _row_best(best_ptr + b * N, N, CHUNKS)
    temperature, top_k, top_p = tl.load(temperature_ptr + b), tl.load(top_k_ptr + b), tl.load(top_p_ptr + b)
    least = tl.full((), -2147483648, tl.int32)  # key of the worst token that is kept
    if top_k > 0:
        least = _row_crossing(row_ptr, best, temperature, least, tl.minimum(top_k, V).to(tl.int64), V, False, TILE)
    if top_p < 1.0:
        need = _nucleus(_row_mass(row_ptr, best, temperature, least, 0.0, V, TILE), top_p)
        least = _row_crossing(row_ptr, best, temperature, least, need, V, True, TILE)
    least_mass = tl.load(min_p_ptr + b) * _ONE
    total = _row_mass(row_ptr, best, temperature, least, least_mass, V, TILE)
    target = _fraction(total, _uniform_bits(seed_ptr + b, position_ptr + b))
    before = tl.full((), 0, tl.int64)
    token = tl.full((), 0, tl.int32)
    for start in range(0, V, TILE):
        v = start + tl.arange(0, TILE)
        mass = _row_tile_mass(row_ptr, v, best, temperature, least, least_mass, V)
        after = before + tl.sum(mass, axis=0)
        if (before <= target) & (after > target):
            token = start + tl.sum((before + tl.cumsum(mass, axis=0) <= target).to(tl.int32), axis=0)
        before = after
    tl.store(token_ptr + b, token.to(tl.int64))


@triton.jit
def _row_tile_mass(row_ptr, v, best, temperature, least, least_mass, V):
    x = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
    return _kept_mass(x, best, temperature, least_mass, (v < V) & (_to_key(x) >= least))


@triton.jit
def _row_mass(row_ptr, best, temperature, least, least_mass, V, TILE: tl.constexpr):
    total = tl.zeros((TILE,), tl.int64)
    for start in range(0, V, TILE):
        total += _row_tile_mass(row_ptr, start + tl.arange(0, TILE), best, temperature, least, least_mass, V)
    return tl.sum(total, axis=0)


@triton.jit
def _row_crossing(row_ptr, best, temperature, least, need, V, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The greatest key from which on tokens not below `least` number, or weigh, at least `need`; two bits a pass."""
    low = tl.full((), -2147483648, tl.int64)
    for i in range(16):
        step = tl.full((), 1, tl.int64) << (30 - 2 * i)
        one, two, three = tl.zeros((TILE,), tl.int64), tl.zeros((TILE,), tl.int64), tl.zeros((TILE,), tl.int64)
        for start in range(0, V, TILE):
            v = start + tl.arange(0, TILE)
            x = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
            keys = _to_key(x)
            weight = ((v < V) & (keys >= least)).to(tl.int64)
            if BY_MASS:
                weight *= _mass(x, best, temperature).to(tl.int64)
            one += tl.where(keys >= low + step, weight, 0)
            two += tl.where(keys >= low + 2 * step, weight, 0)
            three += tl.where(keys >= low + 3 * step, weight, 0)
        low += tl.where(tl.sum(one, axis=0) >= need, step, 0)
        low += tl.where(tl.sum(two, axis=0) >= need, step, 0)
        low += tl.where(tl.sum(three, axis=0) >= need, step, 0)
    return low.to(tl.int32)


@triton.jit
def _row_best(best_ptr, N, CHUNKS: tl.constexpr):
    """The chunks' bests [CHUNKS], the row's, and whether it holds NaN or nothing above -inf."""
    n = tl.arange(0, CHUNKS)
    chunk_best = tl.load(best_ptr + n, mask=n < N, other=float("-inf"))
    best = tl.max(chunk_best, axis=0)
    broken = tl.max((chunk_best != chunk_best).to(tl.int32), axis=0) > 0
    return chunk_best, best, broken | (best == float("-inf"))


@triton.jit
def _mass(x, best, temperature):
    """Mass of logits in 2**-40, before its fraction is dropped."""
    below = tl.where(x == best, 0.0, (x - best) / temperature)  # equal infinities too
    return tl.exp(below) * _ONE


@triton.jit
def _kept_mass(x, best, temperature, least, mask):
    mass = _mass(x, best, temperature)
    return tl.where(mask & (mass >= least), mass.to(tl.int64), 0)


@triton.jit
def _weightless(best, temperature):
    """A logit below which no token has mass."""
    return tl.maximum(best - _WEIGHTLESS * temperature, _LOWEST)


@triton.jit
def _nucleus(total, top_p):
    """The mass that top-p asks for."""
    share = tl.minimum(tl.maximum(tl.ceil(top_p * _UNIT), 0.0), _UNIT).to(tl.int64)
    return tl.maximum(_fraction(total, share), 1)


@triton.jit
def _fraction(total, bits):
    """floor(total * bits / 2**24) without overflow."""
    return (total >> 24) * bits + (((total & (_UNIT - 1)) * bits) >> 24)


@triton.jit
def _uniform_bits(seed_ptr, position_ptr):
    """24 bits of Philox4x32-10 with the seed as key and the position as counter."""
    position = tl.load(position_ptr)
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word, _, _, _ = tl.philox(tl.load(seed_ptr), low, high, low & 0, low & 0)
    return (word >> 8).to(tl.int64)


@triton.jit
def _to_key(x):
    """int32 in the order of float32 x; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _from_key(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _crossing(keys, weight, need):
    """The greatest key from which on the weights sum to at least `need`, bit by bit."""
    low = tl.full((), -2147483648, tl.int32)
    for i in range(32):
        # The first step, from the least int32 to zero, is the sign: 1 << 31 itself would overflow.
        higher = tl.where(i == 0, 0, low + (1 << tl.where(i == 0, 0, 31 - i)))
        low = tl.where(tl.sum(tl.where(keys >= higher, weight, 0), axis=0) >= need, higher, low)
    return low
