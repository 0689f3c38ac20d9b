"""The Mamba kernels against recurrences that go token by token in float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.mamba import StateBatch, causal_conv, check_mamba, gated_rms_norm, state_space_scan
from sirocco.kernels.triton.common import override

from ..test_mamba import check_static_batch, convolution, make_batch, poisoned, recurrence
from .conftest import Launching

# One rounding of sums of a few products; the interpreter cuts float32 off where bfloat16 should round.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BATCHES = [
    ([1], [True]),
    ([1, 1, 1], [True, False, True]),
    ([40], [False]),
    ([2, 1, 33, 1, 3, 16], [True, True, False, False, True, True]),
]


def slices(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Tensors [T, ...] that are parts of the same rows, as those of a fused product are."""
    sizes = [shape[1:].numel() for shape in map(torch.Size, shapes)]
    rows = torch.randn(shapes[0][0], sum(sizes)).to(dtype)
    return [part.unflatten(1, shape[1:]) for part, shape in zip(rows.split(sizes, 1), shapes, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("query_lens", "has_state"), BATCHES, ids=str)
@pytest.mark.parametrize(("channels", "taps", "with_bias"), [(11, 4, True), (300, 2, False), (3, 17, True)])
def test_causal_conv(
    launching: Launching,
    dtype: torch.dtype,
    query_lens: list[int],
    has_state: list[bool],
    channels: int,
    taps: int,
    with_bias: bool,
) -> None:
    batch = make_batch(query_lens, has_state)
    states = poisoned((channels, taps - 1), batch, dtype)
    x, _ = slices((sum(query_lens) + 2, channels), (sum(query_lens) + 2, 5), dtype=dtype)
    weight, bias = torch.randn(channels, taps).to(dtype), torch.randn(channels).to(dtype) if with_bias else None
    expected, expected_states = convolution(x, weight, bias, states, batch)
    with launching("conv_kernel"):
        actual = causal_conv(x, weight, bias, states, batch)
    assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=2e-6)
    assert torch.equal(states.double().nan_to_num(), expected_states.nan_to_num())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("query_lens", "has_state"), BATCHES, ids=str)
@pytest.mark.parametrize(
    ("heads", "groups", "head_dim", "state_size", "rate"),
    [(4, 2, 5, 7, 30.0), (2, 1, 40, 20, 0.1)],  # decay so fast that a chunk's sum would drown a step, and slow
)
def test_state_space_scan(
    launching: Launching,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    query_lens: list[int],
    has_state: list[bool],
    heads: int,
    groups: int,
    head_dim: int,
    state_size: int,
    rate: float,
) -> None:
    monkeypatch.setitem(override, ("mamba", "scan"), {"CHUNK": 16, "BLOCK_P": 32, "num_warps": 1})
    batch, count = make_batch(query_lens, has_state), sum(query_lens) + 2
    states = poisoned((heads, head_dim, state_size), batch, torch.float32)
    shared = (count, groups, state_size)
    x, b, c = slices((count, heads, head_dim), shared, shared, dtype=dtype)
    dt, a, d = torch.rand(count, heads), -rate * torch.rand(heads), torch.randn(heads)
    expected, expected_states = recurrence(x, dt, a, b, c, d, states, batch)
    kernels = [("update_kernel", 1 in query_lens), ("scan_kernel", max(query_lens) > 1)]
    with launching(*(kernel for kernel, expected_to_run in kernels if expected_to_run)):
        actual = state_space_scan(x, dt, a, b, c, d, states, batch)
    assert actual.dtype == dtype
    for found, wanted in ((states, expected_states), (actual, expected)):
        wanted = wanted.nan_to_num()
        # Beside inputs of two bytes every factor of a product is rounded to them, so errors go with the largest sums.
        atol = max(1e-4, 2 * TOLERANCE[dtype] * wanted.abs().max().item())
        assert_close(found.double().nan_to_num(), wanted, rtol=1e-5, atol=atol)


def test_a_step_looks_its_requests_up_once(launching: Launching) -> None:
    batch = make_batch([3, 1], [False, False])
    x, weight, states = torch.randn(4, 8), torch.randn(8, 4), torch.zeros(8, 8, 3)
    causal_conv(x, weight, None, states, batch)
    (work,) = batch.work.values()
    scanned = torch.zeros(8, 2, 4, 3)
    per_head, shared = torch.ones(2), torch.randn(4, 1, 3)
    with launching("scan_kernel", "update_kernel"):
        state_space_scan(x.view(4, 2, 4), torch.rand(4, 2), -per_head, shared, shared, per_head, scanned, batch)
    assert [*batch.work.values()] == [work]
    assert work.runs.tolist() == [0] and work.singles.tolist() == [1] and work.starts.tolist() == [0, 3, 4]


def test_a_static_batch_follows_what_its_tensors_hold(launching: Launching) -> None:
    with launching("conv_kernel", "update_kernel"):
        check_static_batch()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "width", "groups"), [(5, 12, 3), (1, 700, 1), (9, 130, 2), (0, 12, 3)])
def test_gated_rms_norm(launching: Launching, dtype: torch.dtype, rows: int, width: int, groups: int) -> None:
    x, gate = slices((rows, width), (rows, width), dtype=dtype)
    weight = torch.randn(width).to(dtype)
    gated = (x.double() * gate.double() * torch.sigmoid(gate.double())).view(rows, groups, width // groups)
    expected = (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(rows, width) * weight.double()
    with launching(*["gated_norm_kernel"] * (rows > 0)):
        actual = gated_rms_norm(x, gate, weight, 1e-5, groups)
    assert_close(actual.double(), expected, rtol=2 * TOLERANCE[dtype], atol=TOLERANCE[dtype])  # it rounds twice


def test_what_it_cannot_do_is_refused() -> None:
    batch = StateBatch(torch.tensor([0]), torch.tensor([False]), [4])
    x, per_head, shared = torch.randn(4, 2, 3), torch.ones(2), torch.randn(4, 1, 5)
    states = torch.zeros(1, 2, 3, 5)
    with pytest.raises(ValueError, match=r"states in float32, not torch\.float16"):
        state_space_scan(x, torch.rand(4, 2), per_head, shared, shared, per_head, states.half(), batch)
    with pytest.raises(ValueError, match="adjacent heads"):
        state_space_scan(
            x.transpose(1, 2).contiguous().mT, torch.rand(4, 2), per_head, shared, shared, per_head, states, batch
        )
    with pytest.raises(ValueError, match=r"no kernel for torch\.float64"):
        causal_conv(torch.randn(4, 3).double(), torch.randn(3, 4), None, torch.zeros(1, 3, 3), batch)
    with pytest.raises(ValueError, match="as many weights and states"):
        causal_conv(torch.randn(4, 3), torch.randn(3, 4), None, torch.zeros(1, 3, 4), batch)
    with pytest.raises(ValueError, match="as many weights as channels"):
        gated_rms_norm(x.flatten(1), x.flatten(1), torch.ones(5), 1e-5, 1)
    device = torch.get_default_device()
    check_mamba(256, 17, device)
    with pytest.raises(ValueError, match="Mamba state of 257: 1 to 256"):
        check_mamba(257, 4, device)
    with pytest.raises(ValueError, match="convolution of 18 taps: 2 to 17"):
        check_mamba(128, 18, device)
