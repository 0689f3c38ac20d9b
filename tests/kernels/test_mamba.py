"""Convolution and scan against recurrences that go token by token in float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels import mamba
from sirocco.kernels.mamba import StateBatch, causal_conv, gated_rms_norm, state_space_scan

H, P, N, G, D, W, SLOTS = 6, 5, 7, 2, 11, 4, 8
BATCHES = [
    ([1], [False]),
    ([1], [True]),
    ([1, 1, 1], [True, False, True]),
    ([9], [False]),
    ([17], [True]),
    ([2, 1, 20, 1, 3], [True, True, False, False, True]),
]


def make_batch(query_lens: list[int], has_state: list[bool]) -> StateBatch:
    slots = torch.randperm(SLOTS)[: len(query_lens)]
    return StateBatch(slots, torch.tensor(has_state), query_lens)


def poisoned(shape: tuple[int, ...], batch: StateBatch, dtype: torch.dtype) -> Tensor:
    """States that are NaN wherever nothing has been stored."""
    states = torch.full((SLOTS, *shape), torch.nan, dtype=dtype)
    states[batch.slots[batch.has_state]] = torch.randn(int(batch.has_state.sum()), *shape).to(dtype)
    return states


def requests_of(batch: StateBatch) -> list[tuple[int, bool, slice]]:
    ends = torch.tensor(batch.query_lens).cumsum(0).tolist()
    rows = [slice(end - length, end) for end, length in zip(ends, batch.query_lens, strict=True)]
    return list(zip(batch.slots.tolist(), batch.has_state.tolist(), rows, strict=True))


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, batch: StateBatch
) -> tuple[Tensor, Tensor]:
    """The outputs [T, D] and the new states, one token at a time in float64."""
    out, new = torch.zeros(x.shape, dtype=torch.float64), states.double().clone()
    for slot, known, rows in requests_of(batch):
        window = new[slot] if known else torch.zeros(new.shape[1:], dtype=torch.float64)
        for t in range(rows.start, rows.stop):
            window = torch.cat((window, x[t].double()[:, None]), 1)
            y = (window * weight.double()).sum(1) + (0 if bias is None else bias.double())
            out[t] = y * torch.sigmoid(y)
            window = window[:, 1:]
        new[slot] = window
    return out, new


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("query_lens", "has_state"), BATCHES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_causal_conv(
    dtype: torch.dtype, query_lens: list[int], has_state: list[bool], with_bias: bool, padding: int
) -> None:
    batch = make_batch(query_lens, has_state)
    states = poisoned((D, W - 1), batch, dtype)
    x, weight = torch.randn(sum(query_lens) + padding, 2 * D).to(dtype)[:, :D], torch.randn(D, W).to(dtype)
    bias = torch.randn(D).to(dtype) if with_bias else None
    expected, expected_states = convolution(x, weight, bias, states, batch)
    actual = causal_conv(x, weight, bias, states, batch)
    assert actual.dtype == dtype
    atol = 1e-13 if dtype == torch.float64 else 2e-6
    assert_close(actual.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=atol)
    assert torch.equal(states.double().nan_to_num(), expected_states.nan_to_num())


def recurrence(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, batch: StateBatch
) -> tuple[Tensor, Tensor]:
    """y and the new states, one token at a time in float64."""
    x, dt, a, b, c, d, states = (part.double().clone() for part in (x, dt, a, b, c, d, states))
    y, group = torch.zeros_like(x), torch.arange(x.shape[1]) // (x.shape[1] // b.shape[1])
    for slot, known, rows in requests_of(batch):
        state = states[slot] if known else torch.zeros(states.shape[1:], dtype=torch.float64)
        for t in range(rows.start, rows.stop):
            added = (dt[t, :, None] * x[t])[..., None] * b[t, group][:, None]
            state = torch.exp(dt[t] * a)[:, None, None] * state + added
            y[t] = (state * c[t, group][:, None]).sum(-1) + d[:, None] * x[t]
        states[slot] = state
    return y, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("query_lens", "has_state"), BATCHES)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("rate", [0.1, 30.0])  # slow decay, and so fast that a chunk's sum would drown a step
def test_state_space_scan(
    dtype: torch.dtype,
    query_lens: list[int],
    has_state: list[bool],
    padding: int,
    rate: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mamba, "_CHUNK", 8)
    batch, wide = make_batch(query_lens, has_state), torch.promote_types(dtype, torch.float32)
    states, count = poisoned((H, P, N), batch, wide), sum(query_lens) + padding
    x, b, c = (torch.randn(count, *size).to(dtype) for size in ((H, P), (G, N), (G, N)))
    dt, a, d = torch.rand(count, H, dtype=wide), -rate * torch.rand(H, dtype=wide), torch.randn(H, dtype=wide)
    expected, expected_states = recurrence(x, dt, a, b, c, d, states, batch)
    actual = state_space_scan(x, dt, a, b, c, d, states, batch)
    assert actual.dtype == dtype
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-4}
    assert_close(states.double().nan_to_num(), expected_states.nan_to_num(), **tolerance)
    if dtype == torch.bfloat16:
        tolerance["rtol"] = 2 * torch.finfo(dtype).eps
    assert_close(actual.double(), expected, **tolerance)


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [8, 16, 16], [7, 1, 1, 20, 11]])
def test_chunks_of_a_request_equal_one_pass(cuts: list[int]) -> None:
    x, b, c = (torch.randn(40, *size, dtype=torch.float64) for size in ((H, P), (G, N), (G, N)))
    dt, a, d = torch.rand(40, H, dtype=torch.float64), -torch.rand(H, dtype=torch.float64), torch.randn(H).double()
    states, whole = torch.full((2, 1, H, P, N), torch.nan, dtype=torch.float64)
    slot = torch.tensor([0])
    expected = state_space_scan(x, dt, a, b, c, d, whole, StateBatch(slot, torch.tensor([False]), [40]))
    parts, first = [], 0
    for size in cuts:
        rows = slice(first, first + size)
        batch = StateBatch(slot, torch.tensor([first > 0]), [size])
        parts.append(state_space_scan(x[rows], dt[rows], a, b[rows], c[rows], d, states, batch))
        first += size
    assert_close(torch.cat(parts), expected)
    assert_close(states, whole)


def check_static_batch() -> None:
    """Padding rows of a captured step share a slot, and what its first rows were does not matter to later ones."""
    batch = StateBatch(torch.tensor([0, 1, 5, 5]), torch.tensor([True] * 4), [1] * 4, static=True)
    causal_conv(torch.randn(4, D), torch.randn(D, W), None, torch.zeros(SLOTS, D, W - 1), batch)
    batch.slots.copy_(torch.tensor([3, 0, 5, 5]))
    batch.has_state.copy_(torch.tensor([True, False, False, False]))
    fresh = StateBatch(torch.tensor([3, 0]), torch.tensor([True, False]), [1, 1])

    x, weight, states = torch.randn(3, D)[[0, 1, 2, 2]], torch.randn(D, W), poisoned((D, W - 1), fresh, torch.float32)
    expected, expected_states = convolution(x[:2], weight, None, states, fresh)
    actual = causal_conv(x, weight, None, states, batch)
    assert_close(actual[:2].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(states[:5].double().nan_to_num(), expected_states[:5].nan_to_num())
    assert bool(actual.isfinite().all() and states[5].isfinite().all())

    x, b, c = (torch.randn(3, *size)[[0, 1, 2, 2]] for size in ((H, P), (G, N), (G, N)))
    dt, a, d = torch.rand(3, H)[[0, 1, 2, 2]], -torch.rand(H), torch.randn(H)
    states = poisoned((H, P, N), fresh, torch.float32)
    expected, expected_states = recurrence(x[:2], dt[:2], a, b[:2], c[:2], d, states, fresh)
    actual = state_space_scan(x, dt, a, b, c, d, states, batch)
    assert_close(actual[:2].double(), expected, rtol=1e-5, atol=1e-4)
    assert_close(states[:5].double().nan_to_num(), expected_states[:5].nan_to_num(), rtol=1e-5, atol=1e-4)
    assert bool(actual.isfinite().all() and states[5].isfinite().all())


def test_a_static_batch_follows_what_its_tensors_hold() -> None:
    check_static_batch()


def test_gated_rms_norm() -> None:
    x, gate, weight = torch.randn(5, 12).double(), torch.randn(5, 12).double(), torch.randn(12).double()
    gated = (x * gate * torch.sigmoid(gate)).view(5, 3, 4)
    expected = (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(5, 12) * weight
    assert_close(gated_rms_norm(x, gate, weight, 1e-5, 3), expected)
