"""The C++ kernels on tensors: bfloat16 on the CPU, contiguous unless said otherwise.

What a model's weights or caches could get wrong raises ValueError: a wrong width, a dtype that no caller checks. What
the runtime makes itself, such as slots, tables of angles and biases, is taken as it comes.
"""

import ctypes
import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sirocco.kernels.native.build import library

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "sirocco_pack": (_P, _L, _L, _P, _I),
    "sirocco_unpack": (_P, _L, _L, _P),
    "sirocco_linear": (_P, _L, _L, _L, _P, _L, _P, _P, _L, _I, _I),
    "sirocco_grouped_linear": (_P, _L, _P, _P, _L, _L, _P, _P, _I),
    "sirocco_rms_norm": (_P, _P, _P, _I, _L, _L, _F, _P, _P, _I),
    "sirocco_gated": (_P, _L, _L, _I, _P, _I),
    "sirocco_norm_rope_write": (_P, _L, _L, _L, _L, _P, _P, _I, _F, _P, _P, _L, _I, _P, _P, _L, _P, _P, _I),
    "sirocco_paged_attention": (_P, _P, _P, _P, _P, _L, _P, _L, _L, _L, _L, _L, _F, _L, _F, _P, _P, _I),
}
GATES = {"silu": 0, "gelu_tanh": 1}
NORM_DTYPES = (torch.bfloat16, torch.float32)  # of the weights of norms


@functools.cache
def _kernels() -> Any:
    lib = library()
    if lib is not None:
        for name, arguments in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, None
        lib.sirocco_packed_size.argtypes, lib.sirocco_packed_size.restype = (_L, _L), _L
    return lib


def available() -> bool:
    """Whether the kernels are compiled, or could be."""
    return _kernels() is not None


def has_products() -> bool:
    """Whether the processor multiplies bfloat16: without, torch's linear layers are no slower."""
    return available() and bool(_kernels().sirocco_has_dot())


def pack(weight: Tensor) -> Tensor:
    """Lay weight [N, K], K even, out for `linear`; returns [N rounded up to 64, K] in an order of its own."""
    num_out, num_in = weight.shape
    weight = weight.contiguous()
    packed = torch.empty(_kernels().sirocco_packed_size(num_out, num_in) // num_in, num_in, dtype=weight.dtype)
    _kernels().sirocco_pack(weight.data_ptr(), num_out, num_in, packed.data_ptr(), torch.get_num_threads())
    return packed


def unpack(packed: Tensor, num_out: int) -> Tensor:
    """The weight [N, K] that was laid out."""
    weight = packed.new_empty(num_out, packed.shape[1])
    _kernels().sirocco_unpack(packed.data_ptr(), num_out, packed.shape[1], weight.data_ptr())
    return weight


def linear(x: Tensor, packed: Tensor, num_out: int, bias: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return x [..., K] times a laid out weight, plus bias [N], as [..., N] in bfloat16 or float32.

    Each row's sums run in the same order however many rows there are.
    """
    shape, num_in = x.shape, packed.shape[1]
    if shape[-1] != num_in or x.dtype is not torch.bfloat16:
        raise ValueError(f"rows of {shape[-1]} in {x.dtype} for a weight of {num_in} inputs in bfloat16")
    if bias is not None:
        if bias.numel() != num_out or bias.dtype is not torch.bfloat16:
            raise ValueError(f"a bias of {bias.numel()} in {bias.dtype} for {num_out} outputs in bfloat16")
        bias = bias.contiguous()
    rows = x if len(shape) == 2 else x.reshape(-1, num_in)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    num_rows = rows.shape[0]
    out = torch.empty(*shape[:-1], num_out, dtype=dtype)
    _kernels().sirocco_linear(
        *(rows.data_ptr(), rows.stride(0) if num_rows > 1 else num_in, num_rows, num_in, packed.data_ptr(), num_out),
        *(None if bias is None else bias.data_ptr(), out.data_ptr(), num_out, dtype == torch.float32),
        torch.get_num_threads(),
    )
    return out


def grouped_linear(
    x: Tensor, counts: Sequence[int], packed: Sequence[Tensor], num_out: int, biases: Sequence[Tensor] | None
) -> Tensor:
    """Return each run of rows, counts [G] of them, of x [R, K] times its own laid out weight, plus its bias: [R, N]."""
    x = x.contiguous()
    num_groups, (num_rows, num_in) = len(packed), x.shape
    if x.dtype is not torch.bfloat16 or any(weight.shape[1] != num_in for weight in packed):
        raise ValueError(f"rows of {num_in} in {x.dtype} for weights of other widths or dtypes")
    out = x.new_empty(num_rows, num_out)
    starts = (_L * (num_groups + 1))(*accumulate(counts, initial=0))
    if starts[num_groups] != num_rows:
        raise ValueError(f"groups of {starts[num_groups]} rows for {num_rows} rows")
    weights = (_P * num_groups)(*(weight.data_ptr() for weight in packed))
    biases = None if biases is None else [bias.contiguous() for bias in biases]
    added = None if biases is None else (_P * num_groups)(*(bias.data_ptr() for bias in biases))
    _kernels().sirocco_grouped_linear(
        *(x.data_ptr(), num_in, weights, starts, num_groups, num_out, added, out.data_ptr(), torch.get_num_threads())
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the rows of x [..., C]; weight [C] in one of NORM_DTYPES."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    weight = _norm_weight(weight, width)
    _kernels().sirocco_rms_norm(
        *(x.data_ptr(), None, weight.data_ptr(), _of_floats(weight), x.numel() // width, width, eps),
        *(out.data_ptr(), None, torch.get_num_threads()),
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(residual + x), residual + x) of x and residual [..., C]; weight [C] in one of NORM_DTYPES."""
    shape = x.shape
    if residual.shape != shape:
        raise ValueError(f"a residual of shape {tuple(residual.shape)} for rows of shape {tuple(shape)}")
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    width = shape[-1]
    weight = _norm_weight(weight, width)
    _kernels().sirocco_rms_norm(
        *(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), _of_floats(weight), x.numel() // width, width, eps),
        *(out.data_ptr(), total.data_ptr(), torch.get_num_threads()),
    )
    return out, total


def gated(gate_up: Tensor, kind: str) -> Tensor:
    """act(gate) * up of gate_up [..., 2 I] as [..., I]; kind is a key of GATES."""
    gate_up = gate_up.contiguous()
    inner, rest = divmod(gate_up.shape[-1], 2)
    if rest:
        raise ValueError(f"rows of {2 * inner + 1} are no gate and up of one width")
    out = gate_up.new_empty(*gate_up.shape[:-1], inner)
    rows = out.numel() // inner
    _kernels().sirocco_gated(gate_up.data_ptr(), rows, inner, GATES[kind], out.data_ptr(), torch.get_num_threads())
    return out


def norm_rope_write(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    num_heads: int,
    num_kv_heads: int,
) -> Tensor:
    """`kv.norm_rope_write`; caches in bfloat16, tables in float32, slots in int64, weights in one of NORM_DTYPES."""
    num_tokens, width = qkv.shape
    _, cache_heads, block_size, dim = k_cache.shape
    if width != (num_heads + 2 * num_kv_heads) * dim or cache_heads != num_kv_heads or len(slot_mapping) != num_tokens:
        raise ValueError(
            f"qkv {tuple(qkv.shape)} of {num_heads} and {num_kv_heads} heads with {len(slot_mapping)} slots does not "
            f"fit a cache {tuple(k_cache.shape)}"
        )
    q_weight = None if q_weight is None else _norm_weight(q_weight, dim)
    k_weight = None if k_weight is None else _norm_weight(k_weight, dim)
    weight = k_weight if q_weight is None else q_weight
    is_float = weight is not None and _of_floats(weight)
    qkv, slot_mapping = qkv.contiguous(), slot_mapping.contiguous()
    if cos is not None and sin is not None:
        cos, sin = cos.contiguous(), sin.contiguous()
    q = torch.empty(num_tokens, num_heads, dim, dtype=qkv.dtype)
    _kernels().sirocco_norm_rope_write(
        *(qkv.data_ptr(), num_tokens, num_heads, num_kv_heads, dim, _pointer(q_weight), _pointer(k_weight)),
        *(is_float, eps),
        *(_pointer(cos), _pointer(sin), 0 if cos is None else cos.shape[-1], interleaved),
        *(k_cache.data_ptr(), v_cache.data_ptr(), block_size, slot_mapping.data_ptr(), q.data_ptr()),
        torch.get_num_threads(),
    )
    return q


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lens: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`attention.paged_attention` of bfloat16; lens [2, B] int64 holds the query and the cached lengths."""
    _, num_heads, dim = q.shape
    _, num_kv_heads, block_size, cache_dim = k_cache.shape
    if dim != cache_dim or num_heads % num_kv_heads:
        raise ValueError(f"queries {tuple(q.shape)} do not fit a cache {tuple(k_cache.shape)}")
    q = q.contiguous()
    out = torch.empty_like(q)
    sinks = None if sinks is None else sinks.float().contiguous()
    _kernels().sirocco_paged_attention(
        *(q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), lens.data_ptr(), lens.data_ptr() + 8 * lens.shape[1]),
        *(lens.shape[1], block_table.data_ptr(), block_table.stride(0), num_heads, num_kv_heads, dim),
        *(block_size, scale, window or 0, softcap or 0.0, _pointer(sinks), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def _norm_weight(weight: Tensor, width: int) -> Tensor:
    """A norm's weight [width], one number beside the other."""
    if weight.numel() != width:
        raise ValueError(f"a norm's weight of {weight.numel()} for rows of {width}")
    return weight.contiguous()


def _of_floats(weight: Tensor) -> bool:
    return weight.dtype is torch.float32


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
