"""A decoder layer of attention and a gated feed-forward as one call: a step calls each layer once instead of its
operators, whose calls cost more than what they compute beside the products."""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sirocco.kernels.native.build import library
from sirocco.kernels.native.ops import GATES

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


class _Layer(ctypes.Structure):
    """`Layer` of layer.cpp."""

    _fields_ = (
        *((name, _L) for name in ("width", "heads", "kv_heads", "dim", "inner", "block_size", "window")),
        *((name, _F) for name in ("eps", "qk_eps", "scale", "softcap")),
        *((name, _I) for name in ("interleaved", "gate", "float_norms")),
        *((name, _P) for name in ("mixer_norm", "ffn_norm", "q_norm", "k_norm")),
        *((f"{name}{part}", _P) for name in ("qkv", "out", "gate_up", "down") for part in ("", "_bias")),
        *((name, _P) for name in ("k_cache", "v_cache")),
    )


class _Step(ctypes.Structure):
    """`Step` of layer.cpp."""

    _fields_ = (
        *((name, _L) for name in ("rows", "requests", "table_width", "half")),
        *((name, _P) for name in ("slots", "query_lens", "kv_lens", "tables", "cos", "sin", "scratch")),
        ("threads", _I),
    )


@functools.cache
def _kernels() -> Any:
    lib = library()
    assert lib is not None, "a layer's weights were laid out for kernels that are not there"
    lib.sirocco_layer.argtypes, lib.sirocco_layer.restype = (_P, _P, _P, _P, _P, _P), None
    lib.sirocco_layer_scratch.argtypes, lib.sirocco_layer_scratch.restype = (_P,), _L
    return lib


@dataclass(frozen=True, slots=True)
class LinearParts:
    """A laid out weight and its bias [N], or none."""

    packed: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer computes with: norms [C], norms of heads [D] or none, linear layers, its cache.

    All are in bfloat16; the norms may be in float32 instead, together.
    """

    mixer_norm: Tensor
    ffn_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    qkv: LinearParts
    out: LinearParts
    gate_up: LinearParts
    down: LinearParts
    k_cache: Tensor
    v_cache: Tensor


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """The numbers of a layer; `inner` is the width between the products of its feed-forward, `gate` a key of GATES."""

    heads: int
    inner: int
    eps: float
    qk_eps: float
    scale: float
    softcap: float | None
    window: int | None
    interleaved: bool
    gate: str


class StepPlace:
    """Where the rows of a step stand, for layers of one rotary embedding and one block table."""

    def __init__(
        self, lens: Tensor, block_table: Tensor, slot_mapping: Tensor, tables: tuple[Tensor, Tensor] | None
    ) -> None:
        """lens [2, B] int64 are query and cached lengths, slots [T] int64; `tables` are cos and sin [T, R / 2]."""
        cos, sin = (None, None) if tables is None else (table.contiguous() for table in tables)
        self._kept = (lens, block_table, slot_mapping, cos, sin)  # what is pointed at
        self._scratch: Tensor | None = None
        self.num_rows = num_rows = len(slot_mapping)
        self.struct = _Step(
            rows=num_rows,
            requests=lens.shape[1],
            table_width=block_table.stride(0),
            half=0 if cos is None else cos.shape[1],
            slots=slot_mapping.data_ptr(),
            query_lens=lens.data_ptr(),
            kv_lens=lens.data_ptr() + 8 * lens.shape[1],
            tables=block_table.data_ptr(),
            cos=None if cos is None else cos.data_ptr(),
            sin=None if sin is None else sin.data_ptr(),
            threads=torch.get_num_threads(),
        )
        self.pointer = ctypes.addressof(self.struct)

    def reserve(self, elements: int) -> None:
        """Have as much scratch memory for each row."""
        if self._scratch is None or self._scratch.numel() < elements * self.num_rows:
            self._scratch = torch.empty(elements * self.num_rows, dtype=torch.bfloat16)
            self.struct.scratch = self._scratch.data_ptr()


class Layer:
    """A layer that is ready to run; it keeps its parts alive."""

    def __init__(self, parts: LayerParts, sizes: LayerSizes) -> None:
        self._parts = parts
        caches, q = parts.k_cache.shape, parts.qkv
        linears = ("qkv", "out", "gate_up", "down")
        pointers = {name: getattr(parts, name).packed.data_ptr() for name in linears}
        pointers |= {f"{name}_bias": _pointer(getattr(parts, name).bias) for name in linears}
        names = ("mixer_norm", "ffn_norm", "q_norm", "k_norm", "k_cache", "v_cache")
        pointers |= {name: _pointer(getattr(parts, name)) for name in names}
        self._struct = _Layer(
            width=q.packed.shape[1],
            heads=sizes.heads,
            kv_heads=caches[1],
            dim=caches[3],
            inner=sizes.inner,
            block_size=caches[2],
            window=sizes.window or 0,
            eps=sizes.eps,
            qk_eps=sizes.qk_eps,
            scale=sizes.scale,
            softcap=sizes.softcap or 0.0,
            interleaved=sizes.interleaved,
            gate=GATES[sizes.gate],
            float_norms=parts.mixer_norm.dtype is torch.float32,
            **pointers,
        )
        self._pointer = ctypes.addressof(self._struct)
        self._run = _kernels().sirocco_layer
        self._scratch: int = _kernels().sirocco_layer_scratch(self._pointer)

    def __call__(self, x: Tensor, residual: Tensor | None, place: StepPlace) -> tuple[Tensor, Tensor]:
        """The stream x, residual [T, C] after this layer; what has begun is overwritten, x that starts it is not."""
        place.reserve(self._scratch)
        if residual is None:
            x = x.contiguous()
            x_out, residual_out = torch.empty_like(x), torch.empty_like(x)
            self._run(self._pointer, place.pointer, x.data_ptr(), None, x_out.data_ptr(), residual_out.data_ptr())
            return x_out, residual_out
        at, beside = x.data_ptr(), residual.data_ptr()
        self._run(self._pointer, place.pointer, at, beside, at, beside)
        return x, residual


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
