import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels import activation as definitions
from sirocco.kernels.activation import activation, geglu, swiglu
from sirocco.kernels.triton.activation import KINDS, gated, unary

from .conftest import Launching

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens, width", [(1, 64), (5, 33), (2, 1100), (0, 16)])
def test_gated(launching: Launching, dtype: torch.dtype, tokens: int, width: int) -> None:
    gate_up = (3 * torch.randn(tokens, 2 * width + 5)).to(dtype)[:, : 2 * width]
    gate, up = gate_up.double().chunk(2, -1)
    check(geglu(gate_up, tanh=False), F.gelu(gate) * up)
    check(geglu(gate_up, tanh=True), F.gelu(gate, approximate="tanh") * up)
    if tokens:
        with launching("gated_kernel"):
            check(swiglu(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("kind", KINDS)
def test_unary(launching: Launching, kind: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 600), torch.linspace(-0.11, 0.11, 301), torch.tensor([0.0, 100.0, -100.0])])
    with launching("unary_kernel"):
        actual = activation(kind)(x)
    assert_close(actual.double(), definitions._DEFINITIONS[kind](x.double()), rtol=2e-6, atol=1e-6)
    assert activation(kind)(torch.tensor([torch.nan])).isnan().all()


def test_kinds_are_those_of_the_definition() -> None:
    assert set(KINDS) == set(definitions._DEFINITIONS)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no kernel for activation 'softsign'"):
        unary(torch.ones(1, 2), "softsign")
    with pytest.raises(ValueError, match="which 3 channels do not have"):
        gated(torch.ones(1, 3), "silu")
    with pytest.raises(ValueError, match=r"silu has no kernel for torch\.float64"):
        swiglu(torch.ones(1, 4).double())
