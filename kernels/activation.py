"""Activations of MLP blocks: gated ones over a fused gate and up projection, and the plain ones by name."""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up of gate_up [..., 2 I], gate in the first half, as [..., I] (arXiv:2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def geglu(gate_up: Tensor, tanh: bool) -> Tensor:
    """Return gelu(gate) * up of gate_up [..., 2 I], gate in the first half, as [..., I]; `tanh` approximates."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh" if tanh else "none").mul_(up)


def activation(name: str) -> Activation:
    """Return the element-wise activation that a Hugging Face config calls `name`.

    Raises ValueError for a name that is not known.
    """
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"unknown activation {name!r}; known are {', '.join(sorted(_ACTIVATIONS))}") from None


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


_gelu_tanh: Activation = functools.partial(F.gelu, approximate="tanh")

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu_squared,
    "relu6": F.relu6,
    "sigmoid": F.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": F.tanh,
}
