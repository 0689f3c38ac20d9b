"""Activations of MLP blocks: gated ones over a fused gate and up projection, and the plain ones by name."""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from sirocco.kernels.backend import use_native, use_triton
from sirocco.kernels.native import ops as native

Activation = Callable[[Tensor], Tensor]


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up of gate_up [..., 2 I], gate in the first half, as [..., I] (arXiv:2002.05202)."""
    if use_triton(gate_up):
        from sirocco.kernels.triton import activation as kernels

        return kernels.gated(gate_up, "silu")
    if use_native(gate_up):
        return native.gated(gate_up, "silu")
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def geglu(gate_up: Tensor, tanh: bool) -> Tensor:
    """Return gelu(gate) * up of gate_up [..., 2 I], gate in the first half, as [..., I]; `tanh` approximates."""
    if use_triton(gate_up):
        from sirocco.kernels.triton import activation as kernels

        return kernels.gated(gate_up, "gelu_tanh" if tanh else "gelu")
    if tanh and use_native(gate_up):
        return native.gated(gate_up, "gelu_tanh")
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh" if tanh else "none").mul_(up)


def activation(name: str) -> Activation:
    """Return the element-wise activation that a Hugging Face config calls `name`.

    Raises ValueError for a name that is not known.
    """
    return functools.partial(_run, kind_of(name))


def gated(name: str) -> Activation:
    """Return act(gate) * up of a fused gate_up [..., 2 I] as [..., I], act as `activation` has it.

    Raises ValueError for a name that is not known.
    """
    match kind_of(name):
        case "silu":
            return swiglu
        case "gelu" | "gelu_tanh" as kind:
            return functools.partial(geglu, tanh=kind == "gelu_tanh")
        case kind:
            return functools.partial(_run_gated, kind)


def kind_of(name: str) -> str:
    """Return the one name of ours for an activation. Raises ValueError for a name that is not known."""
    try:
        return _KINDS[name]
    except KeyError:
        raise ValueError(f"unknown activation {name!r}; known are {', '.join(sorted(_KINDS))}") from None


def _run_gated(kind: str, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return _run(kind, gate) * up


def _run(kind: str, x: Tensor) -> Tensor:
    if use_triton(x):
        from sirocco.kernels.triton import activation as kernels

        return kernels.unary(x, kind)
    return _DEFINITIONS[kind](x)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


_DEFINITIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu_squared,
    "relu6": F.relu6,
    "sigmoid": F.sigmoid,
    "silu": F.silu,
    "tanh": F.tanh,
}

_KINDS = {kind: kind for kind in _DEFINITIONS} | {
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}
