# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The arithmetic by which `sirocco.kernels.sampling` defines a draw: masses, random bits, logits as ordered keys."""

import triton
import triton.language as tl

ONE = tl.constexpr(1 << 40)  # the best token's mass
UNIT = tl.constexpr(1 << 24)  # uniform numbers and top-p are whole numbers of 2**-24
LEAST_KEY = tl.constexpr(-2147483648)
_WEIGHTLESS = tl.constexpr(28.5)  # so many temperatures below the best a token has no mass: exp(-28.5) < 2**-41
_LOWEST = tl.constexpr(-3.4e38)

# A value a row: its address must not choose a variant, and nothing is gained from knowing it aligned.
PER_ROW = ["temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "seed_ptr", "position_ptr", "token_ptr"]


@triton.jit
def row_best(best_ptr, N, CHUNKS: tl.constexpr):
    """The chunks' bests [CHUNKS], the row's, and whether it holds NaN or nothing above -inf."""
    n = tl.arange(0, CHUNKS)
    chunk_best = tl.load(best_ptr + n, mask=n < N, other=float("-inf"))
    best = tl.max(chunk_best, axis=0)
    broken = tl.max((chunk_best != chunk_best).to(tl.int32), axis=0) > 0
    return chunk_best, best, broken | (best == float("-inf"))


@triton.jit
def slope_of(temperature):
    """How often mass halves per unit of logit; one division a row, and then a product a token."""
    slope = tl.div_rn(tl.full((), 1.4426950408889634, tl.float32), temperature)
    return tl.minimum(tl.maximum(slope, 2e-38), 3e38)


@triton.jit
def mass_of(x, best, slope):
    """Mass of logits in 2**-40, before its fraction is dropped."""
    below = tl.where(x == best, 0.0, x - best)  # equal infinities too
    return tl.exp2(below * slope) * ONE


@triton.jit
def in_row(mass, chunk_best, best, slope):
    """Mass relative to a chunk's best as mass relative to the row's."""
    halvings = tl.minimum(tl.where(chunk_best == best, 0.0, best - chunk_best) * slope, 63.0)
    whole = tl.floor(halvings)
    weight = tl.exp2(whole - halvings) * UNIT
    return fraction(mass, weight.to(tl.int64)) >> whole.to(tl.int64)


@triton.jit
def row_total(mass_ptr, chunk_best, best, slope, N, CHUNKS: tl.constexpr):
    """The mass of all tokens, from that of the chunks."""
    n = tl.arange(0, CHUNKS)
    return tl.sum(in_row(tl.load(mass_ptr + n, mask=n < N, other=0), chunk_best, best, slope), axis=0)


@triton.jit
def weightless(best, temperature):
    """A logit below which no token has mass."""
    return tl.maximum(best - _WEIGHTLESS * temperature, _LOWEST)


@triton.jit
def least_logit(best, temperature, min_p):
    """The logit from which on min-p keeps tokens."""
    return tl.where(min_p > 0.0, best + temperature * tl.log(tl.maximum(min_p, 2e-38)), float("-inf"))


@triton.jit
def nucleus(total, top_p):
    """The mass that top-p asks for."""
    share = tl.minimum(tl.maximum(tl.ceil(top_p * UNIT), 0.0), UNIT).to(tl.int64)
    return tl.maximum(fraction(total, share), 1)


@triton.jit
def fraction(total, bits):
    """floor(total * bits / 2**24) without overflow."""
    return (total >> 24) * bits + (((total & (UNIT - 1)) * bits) >> 24)


@triton.jit
def uniform_bits(seed_ptr, position_ptr):
    """24 bits of Philox4x32-10 with the seed as key and the position as counter."""
    position = tl.load(position_ptr)
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word, _, _, _ = tl.philox(tl.load(seed_ptr), low, high, low & 0, low & 0)
    return (word >> 8).to(tl.int64)


@triton.jit
def to_key(x):
    """int32 in the order of float32 x; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_key(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def crossing(keys, weight, need, STEPS: tl.constexpr):
    """The greatest key from which on the weights sum to at least `need`, by its bits; of fewer than 32, a lower one."""
    low = tl.full((), LEAST_KEY, tl.int32)
    for i in range(STEPS):
        # The first step, from the least int32 to zero, is the sign: 1 << 31 itself would overflow.
        higher = tl.where(i == 0, 0, low + (1 << tl.where(i == 0, 0, 31 - i)))
        low = tl.where(tl.sum(tl.where(keys >= higher, weight, 0), axis=0) >= need, higher, low)
    return low
