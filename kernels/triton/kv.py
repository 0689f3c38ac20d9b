# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Writing keys and values into the paged cache [N, Hkv, S, D], alone and fused with norm and rotary embedding."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sirocco.kernels.triton.common import Options, cdiv, launch, power_of_two, require_dtype, tuned
from sirocco.kernels.triton.rope import check_tables, turn


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """As `sirocco.kernels.kv.write_kv`; negative slots are seen on the device, so nothing waits for it."""
    require_dtype("write_kv", k, v)
    num_tokens, num_heads, head_dim = k.shape
    if v.shape != k.shape or v.dtype != k.dtype:
        raise ValueError(f"keys {tuple(k.shape)} and values {tuple(v.shape)} of a step have one shape and dtype")
    if k.stride(2) != 1 or v.stride(2) != 1:
        raise ValueError("write_kv needs keys and values with adjacent dims")
    _check_caches(k_cache, v_cache, num_heads, head_dim, slot_mapping, num_tokens)
    if not k.numel():
        return
    options = tuned("kv", "write_kv", head_dim)
    launch(
        _write_kv_kernel,
        (num_tokens, cdiv(num_heads, options["BLOCK_H"])),
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        *k_cache.stride()[:3],
        k_cache.shape[2],
        num_heads,
        head_dim,
        BLOCK_D=power_of_two(head_dim),
        **options,
    )


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
    """As `sirocco.kernels.kv.norm_rope_write`, in one pass over qkv."""
    require_dtype("norm_rope_write", qkv, q_weight, k_weight)
    if qkv.dim() != 2 or qkv.stride(1) != 1 or qkv.shape[1] % (num_heads + 2 * num_kv_heads):
        raise ValueError(f"qkv {tuple(qkv.shape)} is not rows of {num_heads} + 2 * {num_kv_heads} adjacent heads")
    num_tokens, head_dim = len(qkv), qkv.shape[1] // (num_heads + 2 * num_kv_heads)
    for weight in (q_weight, k_weight):
        if weight is not None and (weight.shape != (head_dim,) or not weight.is_contiguous()):
            raise ValueError(f"a head of {head_dim} dims is normed by as many adjacent weights")
    if cos is not None and sin is not None:
        check_tables(cos, sin, num_tokens, head_dim)
    else:
        cos = sin = None
    _check_caches(k_cache, v_cache, num_kv_heads, head_dim, slot_mapping, num_tokens)
    q = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if not num_tokens:
        return q
    options: Options = tuned("kv", "norm_rope_write", head_dim)
    blocks = cdiv(num_heads, options["BLOCK_H"]) + 2 * cdiv(num_kv_heads, options["BLOCK_H"])
    launch(
        _norm_rope_write_kernel,
        (num_tokens, blocks),
        qkv,
        q_weight,
        k_weight,
        cos,
        sin,
        q,
        k_cache,
        v_cache,
        slot_mapping,
        qkv.stride(0),
        0 if cos is None else cos.stride(0),
        *k_cache.stride()[:3],
        k_cache.shape[2],
        num_heads,
        num_kv_heads,
        head_dim,
        0 if cos is None else 2 * cos.shape[1],
        eps,
        INTERLEAVED=interleaved,
        BLOCK_D=power_of_two(head_dim),
        **options,
    )
    return q


def _check_caches(
    k_cache: Tensor, v_cache: Tensor, num_heads: int, head_dim: int, slot_mapping: Tensor, num_tokens: int
) -> None:
    require_dtype("the KV cache", k_cache, v_cache)
    if k_cache.shape[1] != num_heads or k_cache.shape[3] != head_dim:
        raise ValueError(f"a cache {tuple(k_cache.shape)} does not hold {num_heads} heads of {head_dim} dims")
    if k_cache.stride() != v_cache.stride() or k_cache.shape[1:] != v_cache.shape[1:] or k_cache.stride(3) != 1:
        raise ValueError("the caches of keys and values need one layout, with adjacent dims")
    if slot_mapping.shape != (num_tokens,) or slot_mapping.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{num_tokens} tokens need as many int32 or int64 slots, not {tuple(slot_mapping.shape)}")


@triton.jit
def _slot_offset(slot_mapping_ptr, t, S, cache_stride_n, cache_stride_s):
    """The offset of a token's first head in the cache, and whether it is stored at all."""
    slot = tl.load(slot_mapping_ptr + t).to(tl.int64)
    return (slot // S) * cache_stride_n + (slot % S) * cache_stride_s, slot >= 0


@triton.jit(do_not_specialize_on_alignment=["slot_mapping_ptr"])
def _write_kv_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_mapping_ptr,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    cache_stride_n,
    cache_stride_h,
    cache_stride_s,
    S,
    H,
    D,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)  # t * stride outgrows int32
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    offset, stored = _slot_offset(slot_mapping_ptr, t, S, cache_stride_n, cache_stride_s)
    mask = (h < tl.where(stored, H, 0)) & (d < D)
    to = offset + h * cache_stride_h + d
    # Through float32, which loses nothing and is how bfloat16 is interpreted rightly.
    k = tl.load(k_ptr + t * k_stride_t + h * k_stride_h + d, mask=mask, other=0.0).to(tl.float32)
    tl.store(k_cache_ptr + to, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
    v = tl.load(v_ptr + t * v_stride_t + h * v_stride_h + d, mask=mask, other=0.0).to(tl.float32)
    tl.store(v_cache_ptr + to, v.to(v_cache_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["slot_mapping_ptr"])
def _norm_rope_write_kernel(
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_mapping_ptr,
    qkv_stride_t,
    table_stride_t,
    cache_stride_n,
    cache_stride_h,
    cache_stride_s,
    S,
    H,
    Hkv,
    D,
    R,
    eps,
    INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program takes some heads of one token: all of them queries, keys or values."""
    t = tl.program_id(0).to(tl.int64)  # t * stride outgrows int32
    block = tl.program_id(1)
    q_blocks, kv_blocks = tl.cdiv(H, BLOCK_H), tl.cdiv(Hkv, BLOCK_H)
    h = tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    row_ptr = qkv_ptr + t * qkv_stride_t
    cos_ptr = cos_ptr + t * table_stride_t if cos_ptr is not None else None
    sin_ptr = sin_ptr + t * table_stride_t if sin_ptr is not None else None
    if block < q_blocks:
        h += block * BLOCK_H
        mask = (h < H) & (d < D)
        q = _norm_rope(row_ptr + h * D, q_weight_ptr, cos_ptr, sin_ptr, d, mask, D, R, eps, INTERLEAVED)
        tl.store(q_ptr + (t * H + h) * D + d, q.to(q_ptr.dtype.element_ty), mask=mask)
        return
    offset, stored = _slot_offset(slot_mapping_ptr, t, S, cache_stride_n, cache_stride_s)
    if not stored:
        return
    if block < q_blocks + kv_blocks:
        h += (block - q_blocks) * BLOCK_H
        mask = (h < Hkv) & (d < D)
        k = _norm_rope(row_ptr + (H + h) * D, k_weight_ptr, cos_ptr, sin_ptr, d, mask, D, R, eps, INTERLEAVED)
        tl.store(k_cache_ptr + offset + h * cache_stride_h + d, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
    else:
        h += (block - q_blocks - kv_blocks) * BLOCK_H
        mask = (h < Hkv) & (d < D)
        v = tl.load(row_ptr + (H + Hkv + h) * D + d, mask=mask, other=0.0).to(tl.float32)
        tl.store(v_cache_ptr + offset + h * cache_stride_h + d, v.to(v_cache_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _norm_rope(head_ptr, weight_ptr, cos_ptr, sin_ptr, d, mask, D, R, eps, INTERLEAVED: tl.constexpr):
    """Heads [BLOCK_H, BLOCK_D] in float32, normed where there are weights, turned where there are tables."""
    dtype = head_ptr.dtype.element_ty
    x = tl.load(head_ptr + d, mask=mask, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / D + eps)
        x = _scaled(x, scale, weight_ptr + d, d < D).to(dtype).to(tl.float32)
    if cos_ptr is not None:
        partner, cos, sin = turn(cos_ptr, sin_ptr, d, R, INTERLEAVED)
        turned = mask & (d < R)
        other = tl.load(head_ptr + partner, mask=turned, other=0.0).to(tl.float32)  # in the cache by now
        if weight_ptr is not None:
            other = _scaled(other, scale, weight_ptr + partner, d < R).to(dtype).to(tl.float32)
        x = x * cos + other * sin
    return x


@triton.jit
def _scaled(x, scale, weight_ptr, mask):
    return x * scale * tl.load(weight_ptr, mask=mask, other=0.0).to(tl.float32)
