"""MXFP4 against the format's definition, bit by bit."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels import mxfp4
from sirocco.kernels.moe import Experts, Routing, apply_experts, clamped_swiglu
from sirocco.kernels.mxfp4 import Mxfp4Weight, dequantize_mxfp4


def value(code: int) -> float:
    """e2m1 as OCP defines it: a sign, an exponent with bias 1, subnormals below it."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    magnitude = 2.0 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
    return -magnitude if sign else magnitude


def expand(blocks: Tensor, scales: Tensor) -> Tensor:
    """One value at a time, [N, 32 G] in float64."""
    rows = []
    for row, row_scales in zip(blocks.tolist(), scales.tolist(), strict=True):
        values = []
        for block, scale in zip(row, row_scales, strict=True):
            values += [value(code) * 2.0 ** (scale - 127) for byte in block for code in (byte & 15, byte >> 4)]
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64)


def random_blocks(rows: int, groups: int) -> tuple[Tensor, Tensor]:
    blocks = torch.randint(256, (rows, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(118, 128, (rows, groups), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dequantise_is_exact(dtype: torch.dtype) -> None:
    blocks, scales = random_blocks(5, 3)
    blocks[0] = torch.arange(48).view(3, 16) * 5 + 16  # every code in both places
    actual = dequantize_mxfp4(blocks, scales, dtype)
    assert actual.dtype == dtype
    assert torch.equal(actual.double(), expand(blocks, scales))


@pytest.mark.parametrize("byte", [0, 1, 126, 127, 128, 254])
def test_scales_reach_both_ends(byte: int) -> None:
    blocks = torch.full((1, 1, 16), 0x22, dtype=torch.uint8)  # all 1.0
    expanded = dequantize_mxfp4(blocks, torch.tensor([[byte]], dtype=torch.uint8), torch.float64)
    assert expanded.unique().tolist() == [2.0 ** (byte - 127)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_matmul_in_panels(dtype: torch.dtype, num_rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mxfp4, "_PANEL_BYTES", 7 * 96 * dtype.itemsize)  # seven rows at a time, and a rest
    weight = Mxfp4Weight(*random_blocks(50, 3), dtype)
    x, bias = torch.randn(num_rows, 96).to(dtype), torch.randn(50).to(dtype) if with_bias else None
    expected = x.double() @ expand(weight.blocks, weight.scales).T + (0 if bias is None else bias.double())
    atol = {torch.float32: 3e-5, torch.bfloat16: 0.1}[dtype]  # of sums of 96 products up to 6
    assert_close(weight.matmul(x, bias).double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=atol)
    assert weight.num_bytes == 50 * 3 * 17 and torch.equal(
        weight.dense().double(), expand(weight.blocks, weight.scales)
    )


def test_clamped_swiglu() -> None:
    gate, up = (torch.randn(9, 20, dtype=torch.float64) * 9 for _ in range(2))
    expected = torch.empty_like(gate)
    for i, (g, u) in enumerate(zip(gate.flatten().tolist(), up.flatten().tolist(), strict=True)):
        g, u = min(g, 7.0), max(-7.0, min(u, 7.0))
        expected.view(-1)[i] = (u + 1) * g * torch.tensor(1.702 * g, dtype=torch.float64).sigmoid().item()
    gate_up = torch.cat((gate, up), -1)
    before = gate_up.clone()
    assert_close(clamped_swiglu(gate_up, 1.702, 7.0), expected)
    assert torch.equal(gate_up, before) and (gate.max() > 7) and (up.abs().max() > 7)


def test_experts_in_mxfp4() -> None:
    up, down = ([Mxfp4Weight(*random_blocks(*size), torch.float32) for _ in range(4)] for size in ((64, 2), (64, 1)))
    biases = torch.randn(4, 64), torch.randn(4, 64)
    x = torch.randn(6, 64)
    routing = Routing(torch.stack([torch.randperm(4)[:2] for _ in range(6)]), torch.rand(6, 2))
    actual = apply_experts(x, routing, Experts(up, down, *biases), lambda y: clamped_swiglu(y, 1.702, 7.0))
    expected = torch.zeros(6, 64)
    for t in range(6):
        for e, weight in zip(routing.experts[t].tolist(), routing.weights[t].tolist(), strict=True):
            hidden = clamped_swiglu(up[e].dense() @ x[t] + biases[0][e], 1.702, 7.0)
            expected[t] += weight * (down[e].dense() @ hidden + biases[1][e])
    assert_close(actual, expected, rtol=1e-5, atol=1e-4)
