"""Writing keys and values into the paged cache [N, Hkv, S, D], alone and fused with what precedes it."""

import torch
from torch import Tensor

from sirocco.kernels.backend import use_native, use_triton
from sirocco.kernels.native import ops as native
from sirocco.kernels.norm import rms_norm_torch
from sirocco.kernels.rope import rotate_torch


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k and v [T, Hkv, D] in the caches [N, Hkv, S, D], in place, at slot_mapping [T] (block * S + offset).

    A row with a negative slot is padding and is not written. Slots of one call must differ.
    """
    if use_triton(k):
        from sirocco.kernels.triton import kv

        kv.write_kv(k, v, k_cache, v_cache, slot_mapping)
    else:
        write_kv_torch(k, v, k_cache, v_cache, slot_mapping)


def write_kv_torch(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor, padded: bool = True
) -> None:
    """The definition of `write_kv`. Not `padded`, no slot is negative, and it does not look for one."""
    if padded and bool((slot_mapping < 0).any()):
        rows = (slot_mapping >= 0).nonzero().squeeze(-1)
        k, v, slot_mapping = k[rows], v[rows], slot_mapping[rows]
    block_size = k_cache.shape[2]
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    k_cache.transpose(1, 2)[blocks, offsets] = k.to(k_cache.dtype)
    v_cache.transpose(1, 2)[blocks, offsets] = v.to(v_cache.dtype)


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
    padded: bool = True,
) -> Tensor:
    """Split qkv [T, (H + 2 Hkv) D], norm q and k per head, rotate them, store k and v; return q [T, H, D].

    A weight [D] of None skips that norm; cos and sin [T, R / 2] of None skip the rotation. The caches [N, Hkv, S, D]
    change in place as in `write_kv`. Who knows that no slot is negative says that they are not `padded`.
    """
    if use_triton(qkv):
        from sirocco.kernels.triton import kv

        return kv.norm_rope_write(
            qkv, q_weight, k_weight, eps, cos, sin, interleaved, k_cache, v_cache, slot_mapping, num_heads, num_kv_heads
        )
    if use_native(qkv) and _native_fits(q_weight, k_weight, cos, k_cache, slot_mapping):
        return native.norm_rope_write(
            qkv, q_weight, k_weight, eps, cos, sin, interleaved, k_cache, v_cache, slot_mapping, num_heads, num_kv_heads
        )
    total, qk_heads = num_heads + 2 * num_kv_heads, num_heads + num_kv_heads
    heads = qkv.view(len(qkv), total, qkv.shape[-1] // total)
    q, k, v = heads[:, :num_heads], heads[:, num_heads:qk_heads], heads[:, qk_heads:]
    if q_weight is None and k_weight is None and cos is not None and sin is not None:
        turned = rotate_torch(heads[:, :qk_heads], cos, sin, interleaved)  # one pass while they are adjacent
        q, k = turned[:, :num_heads], turned[:, num_heads:]
    else:
        q = _norm_rotate(q, q_weight, eps, cos, sin, interleaved)
        k = _norm_rotate(k, k_weight, eps, cos, sin, interleaved)
    write_kv_torch(k, v, k_cache, v_cache, slot_mapping, padded)
    return q


def _native_fits(
    q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, k_cache: Tensor, slot_mapping: Tensor
) -> bool:
    if k_cache.dtype is not torch.bfloat16 or slot_mapping.dtype is not torch.int64:
        return False
    if q_weight is not None and k_weight is not None and q_weight.dtype is not k_weight.dtype:
        return False
    norms = all(weight is None or weight.dtype in native.NORM_DTYPES for weight in (q_weight, k_weight))
    return norms and (cos is None or cos.dtype is torch.float32)


def _norm_rotate(
    x: Tensor, weight: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, interleaved: bool
) -> Tensor:
    if weight is not None:
        x = rms_norm_torch(x, weight, eps)
    return x if cos is None or sin is None else rotate_torch(x, cos, sin, interleaved)
