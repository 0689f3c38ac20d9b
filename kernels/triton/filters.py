# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Drawing from what top-k and top-p leave of a row, among its candidates or, if those do not settle it, all tokens."""

import triton
import triton.language as tl

from sirocco.kernels.triton.masses import LEAST_KEY, crossing, fraction, mass_of, nucleus, slope_of, to_key

_UNSETTLED = tl.constexpr(-2)
_FEW = tl.constexpr(256)  # candidates, whose every pair is compared


@triton.jit
def draw_filtered(
    row_ptr,
    value_ptr,
    id_ptr,
    count,
    complete,
    best,
    temperature,
    top_k,
    top_p,
    least,
    bits,
    total,
    V,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
):
    """A token; `complete` when tokens beyond the candidates have no mass, `total` of all where top-p alone chooses."""
    slope = slope_of(temperature)
    token = tl.full((), _UNSETTLED, tl.int64)
    if count <= (_FEW if _FEW < CANDIDATES else CANDIDATES):
        token = _draw_from_candidates(
            value_ptr, id_ptr, count, complete, best, slope, top_k, top_p, least, bits, total, V, _FEW, True
        )
    elif count <= CANDIDATES:
        token = _draw_from_candidates(
            value_ptr, id_ptr, count, complete, best, slope, top_k, top_p, least, bits, total, V, CANDIDATES, False
        )
    if token == _UNSETTLED:
        token = _draw_from_row(row_ptr, best, slope, top_k, top_p, least, bits, total, V, TILE)
    return token


@triton.jit
def _draw_from_candidates(
    value_ptr,
    id_ptr,
    count,
    complete,
    best,
    slope,
    top_k,
    top_p,
    least,
    bits,
    total,
    V,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """A token, or _UNSETTLED where tokens that are no candidates may be kept."""
    i = tl.arange(0, SIZE)
    there = i < count
    x = tl.load(value_ptr + i, mask=there, other=float("-inf"))
    ids = tl.load(id_ptr + i, mask=there, other=V)
    keys = tl.where(there, to_key(x), LEAST_KEY)
    mass = tl.where(there, mass_of(x, best, slope).to(tl.int64), 0)
    settled = complete | (top_k <= 0) | (count >= tl.minimum(top_k, V))
    if top_k > 0:
        kth = _crossing(keys, there.to(tl.int32), tl.minimum(top_k, count), count, PAIRS)
        mass = tl.where(keys >= kth, mass, 0)
    if top_p < 1.0:
        reached = tl.sum(mass, axis=0)
        if top_k > 0:
            total = reached
        need = nucleus(total, top_p)
        settled = settled & (complete | (reached >= need))
        mass = tl.where(keys >= _crossing(keys, mass, tl.minimum(need, reached), count, PAIRS), mass, 0)
    mass = tl.where(x >= least, mass, 0)
    target = fraction(tl.sum(mass, axis=0), bits)
    token = -_crossing(-ids, mass, target + 1, count, PAIRS)
    return tl.where(settled, token, _UNSETTLED).to(tl.int64)


@triton.jit
def _crossing(keys, weight, need, count, PAIRS: tl.constexpr):
    """The greatest key from which on the weights of the first `count` sum to at least `need`.

    By bits it takes 32 sums over all threads, each waiting for the last; by pairs, one of each thread's own.
    """
    if PAIRS:
        reached = tl.zeros_like(weight)
        for start in range(0, count, 16):
            j = start + tl.arange(0, 16)
            other, added = tl.gather(keys, j, 0), tl.gather(weight, j, 0)
            reached += tl.sum(tl.where(other[:, None] >= keys[None, :], added[:, None], 0), axis=0)
        key = tl.max(tl.where(reached >= need, keys, LEAST_KEY), axis=0)
    else:
        key = crossing(keys, weight, need, 32)
    return key


@triton.jit
def _draw_from_row(row_ptr, best, slope, top_k, top_p, least, bits, total, V, TILE: tl.constexpr):
    """The same rule over the whole row, read some twenty times."""
    key = tl.full((), LEAST_KEY, tl.int32)  # of the worst token that is kept
    if top_k > 0:
        key = _row_crossing(row_ptr, best, slope, key, tl.minimum(top_k, V).to(tl.int64), V, False, TILE)
    if top_p < 1.0:
        if top_k > 0:
            total = _row_mass(row_ptr, best, slope, key, float("-inf"), V, TILE)
        key = _row_crossing(row_ptr, best, slope, key, nucleus(total, top_p), V, True, TILE)
    target = fraction(_row_mass(row_ptr, best, slope, key, least, V, TILE), bits)
    before = tl.full((), 0, tl.int64)
    token = tl.full((), 0, tl.int32)
    for start in range(0, V, TILE):
        mass = _tile_mass(row_ptr, start + tl.arange(0, TILE), best, slope, key, least, V)
        after = before + tl.sum(mass, axis=0)
        if (before <= target) & (after > target):
            token = start + tl.sum((before + tl.cumsum(mass, axis=0) <= target).to(tl.int32), axis=0)
        before = after
    return token.to(tl.int64)


@triton.jit
def _tile_mass(row_ptr, v, best, slope, key, least, V):
    x = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
    return tl.where((v < V) & (to_key(x) >= key) & (x >= least), mass_of(x, best, slope).to(tl.int64), 0)


@triton.jit
def _row_mass(row_ptr, best, slope, key, least, V, TILE: tl.constexpr):
    total = tl.zeros((TILE,), tl.int64)
    for start in range(0, V, TILE):
        total += _tile_mass(row_ptr, start + tl.arange(0, TILE), best, slope, key, least, V)
    return tl.sum(total, axis=0)


@triton.jit
def _row_crossing(row_ptr, best, slope, key, need, V, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The greatest key from which on tokens not below `key` number, or weigh, at least `need`; two bits a pass."""
    low = tl.full((), LEAST_KEY, tl.int64)
    for i in range(16):
        step = tl.full((), 1, tl.int64) << (30 - 2 * i)
        one, two, three = tl.zeros((TILE,), tl.int64), tl.zeros((TILE,), tl.int64), tl.zeros((TILE,), tl.int64)
        for start in range(0, V, TILE):
            v = start + tl.arange(0, TILE)
            x = tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
            keys = to_key(x)
            weight = ((v < V) & (keys >= key)).to(tl.int64)
            if BY_MASS:
                weight *= mass_of(x, best, slope).to(tl.int64)
            one += tl.where(keys >= low + step, weight, 0)
            two += tl.where(keys >= low + 2 * step, weight, 0)
            three += tl.where(keys >= low + 3 * step, weight, 0)
        low += tl.where(tl.sum(one, axis=0) >= need, step, 0)
        low += tl.where(tl.sum(two, axis=0) >= need, step, 0)
        low += tl.where(tl.sum(three, axis=0) >= need, step, 0)
    return low.to(tl.int32)
