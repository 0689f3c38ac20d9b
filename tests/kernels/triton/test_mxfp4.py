"""The MXFP4 expert products against the format's definition, expanded in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.moe import Experts, apply_experts, clamped_swiglu, route_top_k_softmax
from sirocco.kernels.mxfp4 import Mxfp4Stack
from sirocco.kernels.triton.common import override
from sirocco.kernels.triton.mxfp4 import grouped_matmul

from ..test_mxfp4 import expand, random_blocks
from .conftest import Launching

# Sums of 96 products in float32, and one rounding; the interpreter cuts float32 off where bfloat16 should round.
TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 6e-2}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"BLOCK_M": 16, "BLOCK_N": 16, "GROUPS": 2, "num_warps": 1}
    monkeypatch.setitem(override, ("mxfp4", "grouped_matmul"), small)


def random_stack(num_experts: int, rows: int, groups: int) -> tuple[Mxfp4Stack, Tensor]:
    """Matrices in MXFP4, and [E, rows, 32 groups] in float64."""
    blocks, scales = zip(*(random_blocks(rows, groups) for _ in range(num_experts)), strict=True)
    expanded = torch.stack([expand(*parts) for parts in zip(blocks, scales, strict=True)])
    return Mxfp4Stack(torch.stack(blocks), torch.stack(scales)), expanded


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("counts", [[1], [16, 0, 17, 1], [0, 0, 40]], ids=str)
@pytest.mark.parametrize(("groups", "with_bias"), [(1, True), (3, False)])
def test_rows_meet_their_expert(
    launching: Launching, counts: list[int], groups: int, dtype: torch.dtype, with_bias: bool
) -> None:
    num_experts, num_rows, top_k = len(counts), sum(counts), 3
    weight, expanded = random_stack(num_experts, 21, groups)
    x = (torch.randn(num_rows, 64 * groups) / 8).to(dtype)[:, : 32 * groups]  # rows not adjacent
    bias = torch.randn(num_experts, 21).to(dtype) if with_bias else None
    ends = torch.tensor(counts).cumsum(0)
    expert = torch.repeat_interleave(torch.arange(num_experts), torch.tensor(counts))
    for order in (None, torch.randperm(num_rows * top_k)[:num_rows]):
        rows = x.double() if order is None else x.double()[order // top_k]
        expected = torch.einsum("rk,rnk->rn", rows, expanded[expert])
        expected = expected if bias is None else expected + bias.double()[expert]
        with launching("mxfp4_matmul_kernel"):
            actual = grouped_matmul(x, weight, bias, ends, order, top_k)
        assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_every_code_and_scale_is_exact() -> None:
    blocks = (torch.arange(256, dtype=torch.uint8).view(16, 1, 16)).repeat(1, 2, 1)
    scales = torch.stack((torch.tensor([1, 126, 127, 128, 252, *range(100, 111)]), torch.full((16,), 127)), 1)
    stack = Mxfp4Stack(blocks[None], scales.to(torch.uint8)[None])
    actual = grouped_matmul(torch.eye(64), stack, None, torch.tensor([64]), None, 1)
    assert torch.equal(actual.T.double(), expand(stack.blocks[0], stack.scales[0]).float().double())


def test_the_least_scale_and_the_one_that_is_not_a_number() -> None:
    blocks = torch.full((2, 1, 16), 0x22, dtype=torch.uint8)  # all 1.0
    stack = Mxfp4Stack(blocks[None], torch.tensor([[[0], [255]]], dtype=torch.uint8))
    least, undefined = grouped_matmul(torch.eye(32)[:1], stack, None, torch.tensor([1]), None, 1)[0].tolist()
    assert least == 2.0**-127 and undefined != undefined


@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 4), (7, 2)])
def test_experts_of_tokens(launching: Launching, num_tokens: int, top_k: int) -> None:
    num_experts = 5
    (up, wide_up), (down, wide_down) = random_stack(num_experts, 64, 3), random_stack(num_experts, 96, 1)
    x, biases = torch.randn(num_tokens, 96) / 8, (torch.randn(num_experts, 64), torch.randn(num_experts, 96))
    routing = route_top_k_softmax(torch.randn(num_tokens, num_experts), top_k)
    activation: Callable[[Tensor], Tensor] = partial(clamped_swiglu, alpha=1.702, limit=7.0)
    expected = torch.zeros(num_tokens, 96, dtype=torch.float64)
    for t in range(num_tokens):
        for e, weight in zip(routing.experts[t].tolist(), routing.weights[t].tolist(), strict=True):
            gate, value = (wide_up[e] @ x[t].double() + biases[0][e]).chunk(2)
            gate, value = gate.clamp(max=7.0), value.clamp(-7.0, 7.0)
            expected[t] += weight * (wide_down[e] @ (gate * (1.702 * gate).sigmoid() * (value + 1)) + biases[1][e])
    with launching("mxfp4_matmul_kernel", "clamped_swiglu_kernel"):
        actual = apply_experts(x, routing, Experts([], [], *biases, stacks=(up, down)), activation)
    assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 10), (2, 5, 2600), (0, 8)], ids=str)
def test_clamped_swiglu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate_up = (torch.randn(*shape) * 9).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    gate, up = gate.clamp(max=5.0), up.clamp(-5.0, 5.0)
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    actual = clamped_swiglu(gate_up, 1.3, 5.0)
    assert actual.dtype == dtype
    assert_close(actual.double(), gate * (1.3 * gate).sigmoid() * (up + 1), rtol=tolerance, atol=tolerance)


def test_what_it_cannot_do_is_refused() -> None:
    x, ends = torch.randn(4, 64), torch.tensor([4])
    stack, _ = random_stack(1, 5, 2)
    with pytest.raises(ValueError, match="needs contiguous MXFP4 blocks"):
        grouped_matmul(x[:, :32], stack, None, ends, None, 1)
    with pytest.raises(ValueError, match="no kernel for"):
        grouped_matmul(x.double(), stack, None, ends, None, 1)
    with pytest.raises(ValueError, match="which 7 channels do not have"):
        clamped_swiglu(torch.zeros(2, 7), 1.0, 1.0)
