import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.activation import activation, gated, geglu, swiglu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def each(function: Callable[[float], float], x: Tensor) -> Tensor:
    return torch.tensor([function(v) for v in x.double().flatten().tolist()], dtype=torch.float64).view(x.shape)


def check(actual: Tensor, expected: Tensor) -> None:
    """Two roundings: of the activation, then of the product."""
    eps = torch.finfo(actual.dtype).eps
    assert_close(actual, expected.to(actual.dtype), rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens, width", [(1, 64), (5, 33), (17, 100)])
def test_gated(dtype: torch.dtype, tokens: int, width: int) -> None:
    gate_up = (3 * torch.randn(tokens, 4 * width)).to(dtype)[:, ::2]
    before = gate_up.clone()
    gate, up = gate_up[:, :width], gate_up[:, width:].double()
    check(swiglu(gate_up), each(silu, gate) * up)
    check(geglu(gate_up, tanh=False), each(gelu, gate) * up)
    check(geglu(gate_up, tanh=True), each(gelu_tanh, gate) * up)
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize(
    "name, function",
    [
        ("gelu", gelu),
        ("gelu_new", gelu_tanh),
        ("gelu_pytorch_tanh", gelu_tanh),
        ("gelu_tanh", gelu_tanh),
        ("gelu_fast", gelu_tanh),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("silu", silu),
        ("swish", silu),
        ("relu", lambda x: max(x, 0.0)),
        ("relu2", lambda x: max(x, 0.0) ** 2),
        ("relu6", lambda x: min(max(x, 0.0), 6.0)),
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("tanh", math.tanh),
    ],
)
def test_named(name: str, function: Callable[[float], float]) -> None:
    x = torch.linspace(-9, 9, 61)
    assert_close(activation(name)(x), each(function, x).float(), rtol=2e-5, atol=2e-6)
    up = torch.randn(4, 61)
    got = gated(name)(torch.cat((x.expand(4, -1), up), -1))
    assert_close(got, (each(function, x) * up).float(), rtol=2e-5, atol=4e-6)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'gelly'; known are gelu"):
        activation("gelly")
    with pytest.raises(ValueError, match="unknown activation 'gelly'"):
        gated("gelly")
