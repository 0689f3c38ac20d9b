"""The only place that decides where an operator runs."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

FORCE_TRITON = os.environ.get("SIROCCO_FORCE_TRITON") == "1"  # lets interpreter tests drive the kernels on CPU tensors


def use_triton(x: Tensor) -> bool:
    """Whether an operator on x runs its Triton kernel: x is on a CUDA or ROCm device, and the kernels are installed."""
    return (x.is_cuda or FORCE_TRITON) and _kernels_installed()


def use_native(x: Tensor) -> bool:
    """Whether an operator on x runs its C++ kernel: x is in bfloat16 on the CPU, and the kernels could be compiled."""
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and _native_available()


@functools.cache
def _native_available() -> bool:
    from sirocco.kernels.native import ops

    return ops.available()


@functools.cache
def _kernels_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("triton", "sirocco.kernels.triton"))
