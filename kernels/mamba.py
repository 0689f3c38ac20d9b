"""Mamba-2 (arXiv:2405.21060): causal convolution and state-space scan over several requests side by side.

Each request continues the state in its slot, and leaves there what its last token made of it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sirocco.kernels.backend import use_triton

_CHUNK = 64  # tokens whose pairs are multiplied at once: the scan's work per token grows with it, its calls shrink


@dataclass(frozen=True, eq=False)
class StateBatch:
    """The requests of one step: where the state of each lies, and whether there is one yet or it begins here.

    A static batch is replayed by a captured graph: every request brings one token, and what the tensors hold changes
    between steps. Its padding rows may share a slot, where all of them begin with the same token.
    """

    slots: Tensor  # [B] int64
    has_state: Tensor  # [B] bool
    query_lens: list[int]
    static: bool = False
    work: dict[int, Any] = field(default_factory=dict, init=False, repr=False)  # of the Triton kernels
    _shifts: dict[int, "_Shift"] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert not self.static or all(length == 1 for length in self.query_lens)

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    @cached_property
    def all_have_state(self) -> bool:
        """Whether no request begins, as far as the host can know: of a static batch it cannot."""
        return not self.static and bool(self.has_state.all())

    @cached_property
    def runs(self) -> list[tuple[int, int, int, bool]]:
        """Of each request that brings more than one token: its slot, its first token and the one past its last, and
        whether it has state."""
        runs, token = [], 0
        for slot, known, length in zip(self.slots.tolist(), self.has_state.tolist(), self.query_lens, strict=True):
            if length > 1:
                runs.append((slot, token, token + length, known))
            token += length
        return runs

    @cached_property
    def singles(self) -> tuple[Tensor, Tensor] | None:
        """The requests that bring one token, as rows of [B] and of [T]; None where there are none."""
        lengths = torch.tensor(self.query_lens, device=self.slots.device)
        rows = (lengths == 1).nonzero().squeeze(-1)
        return (rows, (lengths.cumsum(0) - 1)[rows]) if len(rows) else None

    def read(self, states: Tensor, rows: Tensor | None = None) -> Tensor:
        """Copies of the states of the requests, or of some; zeros for those that begin."""
        slots, known = (self.slots, self.has_state) if rows is None else (self.slots[rows], self.has_state[rows])
        found = states.index_select(0, slots)
        return found if self.all_have_state else found.masked_fill_(~known.view(-1, *[1] * (found.ndim - 1)), 0)

    def shift(self, reach: int) -> "_Shift":
        """How tokens stand among those up to `reach` before them; worked out once for all layers."""
        if reach not in self._shifts:
            self._shifts[reach] = _Shift.of(self.query_lens, reach, self.slots.device)
        return self._shifts[reach]


@dataclass(frozen=True, slots=True, eq=False)
class _Shift:
    """Rows of a [T + B * reach] in which each request's tokens follow `reach` rows of what came before."""

    tokens: Tensor  # [T]
    before: Tensor  # [B * reach]
    last: Tensor  # [B * reach] the last rows of each request, old ones where it is short

    @staticmethod
    def of(query_lens: list[int], reach: int, device: torch.device) -> "_Shift":
        lengths = torch.tensor(query_lens, device=device)
        request = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        tokens = torch.arange(len(request), device=device) + reach * (request + 1)
        steps = torch.arange(reach, device=device)
        ends = lengths.cumsum(0) + reach * torch.arange(1, len(lengths) + 1, device=device)
        return _Shift(
            tokens, ((ends - lengths - reach)[:, None] + steps).flatten(), ((ends - reach)[:, None] + steps).flatten()
        )


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, batch: StateBatch) -> Tensor:
    """Return silu of the causal depthwise convolution of x [T, D] with weight [D, W], plus bias [D], as [T, D].

    states [slots, D, W - 1] hold the inputs before a request's first token; they are brought up to its last, in place.
    Rows of x past the last request are padding and return zeros. The sums run in float32 at least. A Triton kernel
    raises ValueError as `check_mamba` does.
    """
    if use_triton(x):
        from sirocco.kernels.triton import mamba  # triton is absent on macOS

        return mamba.causal_conv(x, weight, bias, states, batch)
    return causal_conv_torch(x, weight, bias, states, batch)


def causal_conv_torch(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, batch: StateBatch) -> Tensor:
    """The definition of `causal_conv`."""
    reach, num_tokens = weight.shape[1] - 1, batch.num_tokens
    shift = batch.shift(reach)
    rows = x.new_empty(num_tokens + len(shift.before), x.shape[1])
    rows.index_copy_(0, shift.before, batch.read(states).transpose(1, 2).flatten(0, 1).to(x.dtype))
    rows.index_copy_(0, shift.tokens, x[:num_tokens])
    kept = rows.index_select(0, shift.last).view(len(batch.slots), reach, -1)
    states.index_copy_(0, batch.slots, kept.transpose(1, 2).to(states.dtype))

    wide, taps = _wide(rows), _wide(weight).T.unsqueeze(1)  # [W, 1, D]
    count = len(rows) - reach
    out = wide[:count] * taps[0]
    for i in range(1, reach + 1):
        out.addcmul_(wide[i : i + count], taps[i])
    if bias is not None:
        out += bias
    out = F.silu(out.index_select(0, shift.tokens - reach)).to(x.dtype)
    return out if num_tokens == len(x) else F.pad(out, (0, 0, 0, len(x) - num_tokens))


def state_space_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, batch: StateBatch
) -> Tensor:
    """Run h = exp(dt a) h + dt x b', y = h c + d x over the tokens of each request; return y [T, H, P] in x.dtype.

    x is [T, H, P], the steps dt [T, H], the rates a and the skips d [H], b and c [T, G, N] shared by the heads of a
    group. The states h [slots, H, P, N] change in place; they and the arithmetic are in float32 at least. Rows past
    the last request are padding and return zeros. A Triton kernel raises ValueError as `check_mamba` does.
    """
    if use_triton(x):
        from sirocco.kernels.triton import mamba  # triton is absent on macOS

        return mamba.state_space_scan(x, dt, a, b, c, d, states, batch)
    return state_space_scan_torch(x, dt, a, b, c, d, states, batch)


def state_space_scan_torch(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, batch: StateBatch
) -> Tensor:
    """The definition of `state_space_scan`."""
    wide_x, wide_dt, wide_b, wide_c = _wide(x), _wide(dt), _wide(b), _wide(c)
    count = batch.num_tokens
    out = torch.empty_like(wide_x) if count == len(x) else torch.zeros_like(wide_x)
    for slot, start, stop, has_state in batch.runs:
        state = states[slot]
        if not has_state:
            state.zero_()
        for first in range(start, stop, _CHUNK):
            rows = slice(first, min(first + _CHUNK, stop))
            out[rows] = _chunk(wide_x[rows], wide_dt[rows], a, wide_b[rows], wide_c[rows], state)
    if batch.singles is not None:
        requests, tokens = batch.singles
        one_x, one_dt, one_b, one_c = (part.index_select(0, tokens) for part in (wide_x, wide_dt, wide_b, wide_c))
        updated = batch.read(states, requests)
        out.index_copy_(0, tokens, _single(one_x, one_dt, a, one_b, one_c, updated))
        states.index_copy_(0, batch.slots[requests], updated)
    out[:count].addcmul_(wide_x[:count], d[:, None])
    return out.to(x.dtype)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    """Scale each of `num_groups` parts of x * silu(gate) [T, C] to unit root mean square, then by weight [C].

    Returns [T, C] in the weight's dtype; the arithmetic runs in float32 at least.
    """
    if use_triton(x):
        from sirocco.kernels.triton import norm  # triton is absent on macOS

        return norm.gated_rms_norm(x, gate, weight, eps, num_groups)
    return gated_rms_norm_torch(x, gate, weight, eps, num_groups)


def gated_rms_norm_torch(x: Tensor, gate: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    """The definition of `gated_rms_norm`."""
    wide = _wide(x) * F.silu(_wide(gate))
    groups = wide.view(len(x), num_groups, -1)
    groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    return groups.view_as(wide).to(weight.dtype) * weight


def check_mamba(state_size: int, conv_width: int, device: torch.device) -> None:
    """Raise ValueError, naming it, for a state size or number of taps that the operators cannot do on a device."""
    if use_triton(torch.empty(0, device=device)):
        from sirocco.kernels.triton import mamba

        mamba.check_mamba(state_size, conv_width)


def _chunk(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Tensor:
    """y [L, H, P] of consecutive tokens of a request without the skip, all pairs at once; state [H, P, N] moves on."""
    (length, num_heads, _), num_groups = x.shape, b.shape[1]
    log_decay = (dt * a).T  # [H, L]
    # Sums over runs of tokens rather than differences of sums from the start, which cancel where decay is fast.
    ones = torch.ones(length, length, dtype=torch.bool, device=x.device)
    between = log_decay[..., None].masked_fill(~ones.tril(-1), 0).cumsum(1)  # [H, L, L], from column to row
    decay = between.masked_fill_(~ones.tril(), -torch.inf).exp_()
    inputs = (x * dt[..., None]).transpose(0, 1)  # [H, L, P]
    b, c = b.transpose(0, 1), c.transpose(0, 1)  # [G, L, N]
    scores = torch.bmm(c, b.transpose(1, 2)).repeat_interleave(num_heads // num_groups, 0)
    out = torch.bmm(scores * decay, inputs)

    from_start = log_decay.cumsum(1).exp_()[..., None]  # [H, L, 1]
    by_group = state.view(num_groups, -1, state.shape[-1])  # [G, H / G * P, N]
    carried = torch.bmm(c, by_group.transpose(1, 2)).view(num_groups, length, -1, x.shape[-1])
    out.addcmul_(carried.transpose(1, 2).reshape(out.shape), from_start)
    to_end = (inputs * decay[:, -1, :, None]).view(num_groups, -1, length, x.shape[-1])
    added = torch.bmm(to_end.transpose(2, 3).reshape(num_groups, -1, length), b)
    state.mul_(from_start[:, -1:]).add_(added.view_as(state))
    return out.transpose(0, 1)


def _single(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, states: Tensor) -> Tensor:
    """y [B, H, P] of one token each without the skip; states [B, H, P, N] move on."""
    batch, num_heads, _ = x.shape
    heads_each = num_heads // b.shape[1]
    b, c = (part.repeat_interleave(heads_each, 1).flatten(0, 1) for part in (b, c))  # [B * H, N]
    flat = states.view(batch * num_heads, *states.shape[2:])
    flat.mul_((dt * a).exp().view(-1, 1, 1))
    flat.baddbmm_((x * dt[..., None]).flatten(0, 1).unsqueeze(2), b.unsqueeze(1))
    return torch.bmm(flat, c.unsqueeze(2)).view_as(x)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
