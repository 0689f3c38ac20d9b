import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.moe import Experts, Routing, apply_experts, route_softmax
from sirocco.kernels.triton.common import override
from sirocco.kernels.triton.moe import grouped_matmul

from .conftest import Launching

SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 1}
# Sums of 70 products in float32, and one rounding; the interpreter cuts float32 off where bfloat16 should round.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(override, ("moe", "grouped_matmul"), SMALL)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("counts", [[1], [0, 1, 0], [16, 0, 17, 1, 33], [0, 0, 40]], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_meet_their_expert(launching: Launching, counts: list[int], dtype: torch.dtype, with_bias: bool) -> None:
    num_experts, num_rows, top_k = len(counts), sum(counts), 3
    x = torch.randn(num_rows, 140).to(dtype)[:, :70]  # rows not adjacent
    weight = (torch.randn(num_experts, 37, 70) / 8).to(dtype)
    bias = torch.randn(num_experts, 37).to(dtype) if with_bias else None
    ends = torch.tensor(counts).cumsum(0)
    order = torch.randperm(num_rows * top_k)[:num_rows]
    expert = torch.repeat_interleave(torch.arange(num_experts), torch.tensor(counts))
    for picks in (None, order):
        rows = x.double() if picks is None else x.double()[picks // top_k]
        expected = torch.einsum("rk,rnk->rn", rows, weight.double()[expert])
        expected = expected if bias is None else expected + bias.double()[expert]
        with launching("grouped_matmul_kernel"):
            actual = grouped_matmul(x, weight, bias, ends, picks, top_k)
        assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 4), (7, 2), (40, 1)])
def test_experts_of_tokens(launching: Launching, num_tokens: int, top_k: int) -> None:
    num_experts, width, hidden = 6, 48, 20
    x, logits = torch.randn(num_tokens, width), torch.randn(num_tokens, num_experts)
    up, down = torch.randn(num_experts, 2 * hidden, width) / 7, torch.randn(num_experts, width, hidden) / 4
    routing: Routing = route_softmax(logits, top_k)
    expected = torch.zeros(num_tokens, width, dtype=torch.float64)
    for t in range(num_tokens):
        for e, weight in zip(routing.experts[t].tolist(), routing.weights[t].tolist(), strict=True):
            expected[t] += weight * (down[e].double() @ gated(up[e].double() @ x[t].double()))
    with launching("grouped_matmul_kernel"):
        actual = apply_experts(x, routing, Experts([], [], stacks=(up, down)), gated)
    assert_close(actual.double(), expected, rtol=1e-4, atol=2e-5)


def test_what_it_cannot_do_is_refused() -> None:
    x, ends = torch.randn(4, 8), torch.tensor([4])
    weight: Tensor = torch.randn(1, 5, 8)
    for bad in (weight.half(), weight.transpose(1, 2), weight[..., :7].contiguous()):
        with pytest.raises(ValueError, match="needs contiguous weights"):
            grouped_matmul(x, bad, None, ends, None, 1)
    with pytest.raises(ValueError, match="no kernel for"):
        grouped_matmul(x.double(), weight.double(), None, ends, None, 1)
