"""From logits [B, V] to tokens: penalties, filters, the draw, log-probabilities.

A token's mass is exp((logit - best) / temperature) as a whole number of 2**-40, so that sums do not depend on their
order: the short path and the long one, any batch and any device agree on what is kept and drawn (but for the last bit
of exp). Every filter keeps all tokens at or above some logit, ties included, so a kernel need only search a threshold.

Where top-k and top-p are off, and for the total that top-p alone is a share of, `best` is that of the token's chunk of
the vocabulary, and the chunk's sum is brought to the scale of the row: so one read of the logits can tell the masses,
before the row's best is known.
"""

import math
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from sirocco.kernels.backend import use_triton

_ONE = 1 << 40  # the best token's mass; 2**22 tokens of it still sum below 2**62
_UNIT = 1 << 24  # uniform numbers and top-p are whole numbers of 2**-24
_WORD = 0xFFFFFFFF
_CHUNKS = 512  # of a vocabulary, at most, and their least length
_LEAST_CHUNK = 16
_SMALL = 16384  # so many logits have their best found at once
_LEAST_SLOPE, _GREATEST_SLOPE = 2e-38, 3e38  # which turn no infinity and no zero into NaN
_NUCLEUS = 256  # how many of the best tokens are searched for top-p at first,
_CANDIDATES = 1024  # for any filter at first,
_MORE_CANDIDATES = 16384  # and for the rows that need more, before all are sorted


Word = TypeVar("Word", int, Tensor)


def chunk_size(vocab_size: int) -> int:
    """How many tokens, a power of two, each chunk of a vocabulary holds; the last one may hold fewer."""
    return max(_LEAST_CHUNK, 1 << (-(-vocab_size // _CHUNKS) - 1).bit_length())


@dataclass(frozen=True, slots=True, eq=False)
class SamplingTensors:
    """How each of B rows is sampled, and host facts about all rows so that nothing waits for the device.

    A filter is off in a row with top_k <= 0, top_p >= 1 or min_p <= 0; temperature 0 takes the best token. `position`
    is that of the token to be drawn.
    """

    temperature: Tensor  # [B] float32
    top_k: Tensor  # [B] int32
    top_p: Tensor  # [B] float32
    min_p: Tensor  # [B] float32
    seed: Tensor  # [B] int64
    position: Tensor  # [B] int64
    greedy: bool  # all rows have temperature 0
    any_greedy: bool
    uses_top_k: bool
    uses_top_p: bool
    uses_min_p: bool
    max_top_k: int  # 0 where top_k is off in every row


def sample(logits: Tensor, params: SamplingTensors) -> Tensor:
    """Draw one token per row of logits [B, V]; returns ids [B] int64, -1 where a row holds NaN or nothing above -inf.

    Temperature, then top-k (tokens at least as good as the k-th), top-p (the best tokens down to the one whose mass
    reaches p, and its equals), min-p (logits at least best + temperature * log(min_p), whose mass is min_p of the
    best's). The draw inverts the cumulative mass in order of token id with one uniform number per row,
    `philox_uniform(seed, position)`: the first token whose cumulative mass exceeds u times the total. Temperature 0
    takes the best token, the first of equals. +inf outweighs all finite ones.
    """
    if use_triton(logits):
        from sirocco.kernels.triton import sampling

        return sampling.sample(logits, params)
    return sample_torch(logits, params)


def sample_torch(logits: Tensor, params: SamplingTensors) -> Tensor:
    """The definition of `sample`."""
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    best, tokens = _max(values)
    failed = best.isnan() | (best == -torch.inf)
    if not params.greedy:
        is_greedy = params.temperature <= 0
        temperature = params.temperature.masked_fill(is_greedy, 1.0)
        slope = (math.log2(math.e) / temperature).clamp_(_LEAST_SLOPE, _GREATEST_SLOPE)
        bits = _philox_bits(params.seed, params.position)
        columns = (best, slope, params.top_k, params.top_p, bits)
        least = None
        if params.uses_min_p:
            least = (best + temperature * params.min_p.log()).masked_fill_(params.min_p <= 0, -torch.inf)[:, None]
        drawn = _draw(_Rows(values, *(column[:, None] for column in columns), least=least), is_greedy | failed, params)
        tokens = tokens.where(is_greedy, drawn) if params.any_greedy else drawn
    return tokens.masked_fill(failed, -1)


def philox4x32(c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 of a counter and a key of 32-bit words, ints or int64 tensors (doi:10.1145/2063384.2063405)."""
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # in int64 modulo 2**64: the sign is lost, the 64 bits are right
        c0, c1, c2, c3 = (p1 >> 32) & _WORD ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) & _WORD ^ c3 ^ k1, p0 & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c0, c1, c2, c3


def philox_uniform(seed: Tensor, position: Tensor) -> Tensor:
    """Uniform numbers [B] float32 in [0, 1), multiples of 2**-24, as a pure function of seed and position [B] int64."""
    return _philox_bits(seed, position).to(torch.float32) * 2.0**-24


def _philox_bits(seed: Tensor, position: Tensor) -> Tensor:
    """The top 24 bits of the first word of Philox with the seed as key and the position as counter."""
    if seed.device.type == "cpu" and len(seed) <= 32:  # 8 us a row; in tensors 400 us whatever the number of rows
        bits = [_first_word(s, p) >> 8 for s, p in zip(seed.tolist(), position.tolist(), strict=True)]
        return torch.tensor(bits, dtype=torch.int64)
    return _first_word(seed, position) >> 8


def _first_word(seed: Word, position: Word) -> Word:
    zero = position & 0
    return philox4x32(position & _WORD, (position >> 32) & _WORD, zero, zero, seed & _WORD, (seed >> 32) & _WORD)[0]


def apply_penalties(
    logits: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Lower logits [B, V], in place, of tokens that occurred; factors are [B].

    Tokens of the prompt (prompt_mask [B, V] bool) or the output (output_counts [B, V] int32) have positive logits
    divided and negative ones multiplied by `repetition` (arXiv:1909.05858); then those of the output lose `presence`
    once and `frequency` per occurrence (OpenAI's rule).
    """
    if use_triton(logits):
        from sirocco.kernels.triton import logits as kernels

        kernels.apply_penalties(logits, output_counts, prompt_mask, repetition, presence, frequency)
    else:
        apply_penalties_torch(logits, output_counts, prompt_mask, repetition, presence, frequency)


def apply_penalties_torch(
    logits: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """The definition of `apply_penalties`."""
    repetition, presence, frequency = repetition[:, None], presence[:, None], frequency[:, None]
    in_output = output_counts > 0
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    penalised = scaled.where(prompt_mask | in_output, logits.to(scaled.dtype))
    logits.copy_(penalised - output_counts * frequency - in_output * presence)


def apply_logit_bias(logits: Tensor, rows: Tensor, token_ids: Tensor, bias: Tensor) -> None:
    """Add bias [N] to logits[rows, token_ids], in place; repeated pairs add up."""
    logits.index_put_((rows, token_ids), bias.to(logits.dtype), accumulate=True)


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (logprob [B], top_ids [B, num_top], top_logprobs [B, num_top]) of raw logits [B, V], in float32.

    A row whose token id is negative returns numbers that mean nothing.
    """
    if use_triton(logits):
        from sirocco.kernels.triton import logits as kernels

        return kernels.token_logprobs(logits, token_ids, num_top)
    return token_logprobs_torch(logits, token_ids, num_top)


def token_logprobs_torch(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `token_logprobs`."""
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = _below(values, values.amax(-1, keepdim=True))
    total = shifted.exp().sum(-1, keepdim=True).log()
    logprob = shifted.gather(-1, token_ids.clamp(min=0)[:, None]) - total
    top, top_ids = shifted.topk(num_top, -1)
    return logprob.squeeze(-1), top_ids, top - total


def _below(values: Tensor, best: Tensor) -> Tensor:
    """values - best, with 0 where both are the same infinity."""
    return (values - best).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows to draw from: logits [B, V]; everything else [B, 1]."""

    values: Tensor
    best: Tensor
    slope: Tensor  # how often mass halves per unit of logit
    top_k: Tensor
    top_p: Tensor
    bits: Tensor
    least: Tensor | None = field(kw_only=True)  # the logit from which on min-p keeps tokens, where it is on in any row

    def take(self, rows: Tensor) -> "_Rows":
        columns = (self.values, self.best, self.slope, self.top_k, self.top_p, self.bits)
        least = None if self.least is None else self.least[rows]
        return _Rows(*(column[rows] for column in columns), least=least)

    def mass(self, values: Tensor) -> Tensor:
        """Mass of values [B, n] in 2**-40; the fraction that is left counts for nothing."""
        return _mass(values, self.best, self.slope)

    def chunks(self, least: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best logit [B, N] of each chunk and its mass [B, N] relative to that, of tokens at or above `least`."""
        bests, masses = [], []
        for part in _chunks(self.values):
            best = part.amax(-1)
            mass = _mass(part, best[..., None], self.slope[..., None])
            if least is not None:
                mass.masked_fill_(part < least[..., None], 0)
            bests.append(best)
            masses.append(mass.sum(-1, dtype=torch.int64))
        return torch.cat(bests, -1), torch.cat(masses, -1)

    def in_row(self, mass: Tensor, chunk_best: Tensor) -> Tensor:
        """Mass [B, n] relative to a chunk's best as mass relative to the row's, which never falls where that rises."""
        halvings = (_below(self.best, chunk_best) * self.slope).clamp_(0, 63)
        whole = halvings.floor()
        return _fraction(mass, (whole - halvings).exp2_().mul_(_UNIT).long()) >> whole.long()


def _mass(values: Tensor, best: Tensor, slope: Tensor) -> Tensor:
    return _below(values, best).mul_(slope).exp2_().mul_(_ONE)


def _draw(rows: _Rows, ignored: Tensor, params: SamplingTensors) -> Tensor:
    """Draw a token [B] for each row; what `ignored` [B] rows return means nothing."""
    if not (params.uses_top_k or params.uses_top_p):
        return _draw_unfiltered(rows)
    vocab_size = rows.values.shape[-1]
    wanted = max(params.max_top_k + 1, _NUCLEUS if params.uses_top_p else 0)
    tokens, settled = _draw_among(rows, min(wanted, _CANDIDATES, vocab_size))
    free = ((rows.top_k <= 0) & (rows.top_p >= 1)).squeeze(-1)  # whose masses are by chunk whatever the others ask for
    if len(index := (free & ~ignored).nonzero().squeeze(-1)):
        tokens[index] = _draw_unfiltered(rows.take(index))
    left = ~(settled | ignored | free)
    for num in (_MORE_CANDIDATES, vocab_size):
        if len(index := left.nonzero().squeeze(-1)):
            tokens[index], settled = _draw_among(rows.take(index), min(num, vocab_size))
            left[index] = ~settled
    return tokens


def _draw_unfiltered(rows: _Rows) -> Tensor:
    """Draw a token [B] by chunk: the first whose cumulative mass exceeds u times the total, then the first in it."""
    vocab_size = rows.values.shape[-1]
    chunk_best, mass = rows.chunks(rows.least)
    cumulative = rows.in_row(mass, chunk_best).cumsum(-1)
    target = _fraction(cumulative[:, -1:], rows.bits)
    chunk = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)
    before = cumulative.gather(-1, (chunk - 1).clamp(min=0)).masked_fill(chunk == 0, 0)
    index = _chunk_indices(chunk, vocab_size)
    values, chunk_best = rows.values.gather(-1, index), chunk_best.gather(-1, chunk)
    mass = _mass(values, chunk_best, rows.slope)
    if rows.least is not None:
        mass.masked_fill_(values < rows.least, 0)
    within = rows.in_row(mass.long().cumsum(-1), chunk_best)
    rest = (target - before).minimum(within[:, -1:] - 1)  # exp of some widths of vector differs in its last bit
    picked = torch.searchsorted(within, rest, right=True).clamp_(max=index.shape[-1] - 1)
    return index.gather(-1, picked).squeeze(-1)


def _draw_among(rows: _Rows, num: int) -> tuple[Tensor, Tensor]:
    """Draw from what filtering leaves of the `num` best tokens; returns tokens [B], settled [B].

    A row is settled when no token beyond them could have been kept; else its token means nothing.
    """
    top, ids = rows.values.topk(num, -1)  # best first
    complete = num == rows.values.shape[-1]
    mass = rows.mass(top)
    limited = rows.top_k > 0
    kth = top.gather(-1, rows.top_k.long().clamp(1, num) - 1)
    keep = (top >= kth) | ~limited
    settled = ~limited | ~keep[:, -1:]

    kept = mass.long() * keep
    total = kept.sum(-1, keepdim=True)
    nucleus = rows.top_p < 1
    if bool((nucleus & ~limited).any()):
        chunk_best, masses = rows.chunks(None)
        total = total.where(limited, rows.in_row(masses, chunk_best).sum(-1, keepdim=True))
    share = (rows.top_p * _UNIT).ceil().long().clamp(0, _UNIT)
    reached = kept.cumsum(-1) >= _fraction(total, share).clamp(min=1)
    crossing = top.gather(-1, reached.byte().argmax(-1, keepdim=True))  # the first of equals
    keep &= (top >= crossing) | ~(nucleus & reached[:, -1:])

    if rows.least is not None:
        keep &= top >= rows.least
    settled &= ~keep[:, -1:]
    by_id = ids.argsort(-1)
    cumulative = (mass.long() * keep).gather(-1, by_id).cumsum(-1)
    picked = torch.searchsorted(cumulative, _fraction(cumulative[:, -1:], rows.bits), right=True)
    tokens = ids.gather(-1, by_id.gather(-1, picked.clamp_(max=num - 1)))
    return tokens.squeeze(-1), settled.squeeze(-1) | complete


def _fraction(total: Tensor, bits: Tensor) -> Tensor:
    """floor(total * bits / 2**24) of whole numbers total < 2**62 and bits <= 2**24, without overflow."""
    return (total >> 24) * bits + ((total & (_UNIT - 1)) * bits >> 24)


def _max(values: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest of values [B, V] and the first index that holds it; NaN counts as the greatest."""
    if values.shape[-1] <= _SMALL:
        best, index = values.max(-1)
        return best, index
    # A maximum with its index is not vectorised on CPU: 130 us for V = 151936 to amax's 9, so look only in its chunk.
    chunk = torch.cat([part.amax(-1) for part in _chunks(values)], -1).argmax(-1, keepdim=True)
    index = _chunk_indices(chunk, values.shape[-1])
    best, offset = values.gather(-1, index).max(-1, keepdim=True)
    return best.squeeze(-1), index.gather(-1, offset).squeeze(-1)


def _chunks(x: Tensor) -> list[Tensor]:
    """Views of x [B, n] as [B, n // C, C] and [B, 1, n % C], without an empty one."""
    size = chunk_size(x.shape[-1])
    whole = x.shape[-1] // size * size
    parts = (x[:, :whole].unflatten(-1, (-1, size)), x[:, None, whole:])
    return [part for part in parts if part.numel()]


def _chunk_indices(chunk: Tensor, n: int) -> Tensor:
    """The indices [B, C] of chunk [B, 1] among n; past the end the last one repeats."""
    size = chunk_size(n)
    return (chunk * size + torch.arange(size, device=chunk.device)).clamp_(max=n - 1)
