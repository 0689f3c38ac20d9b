from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.kv import norm_rope_write, write_kv, write_kv_torch
from sirocco.kernels.norm import rms_norm_torch
from sirocco.kernels.rope import rope_tables, rotate_torch

from .conftest import Launching

TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # rounded after the norm and again


def slots_for(num_tokens: int, num_slots: int, padding: int) -> Tensor:
    slots = torch.randperm(num_slots)[:num_tokens]
    slots[:padding] = -1
    return slots


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size, num_heads, head_dim", [(16, 3, 80), (8, 17, 64), (32, 1, 256)])
@pytest.mark.parametrize("padding", [0, 2])
def test_write(
    launching: Launching, dtype: torch.dtype, block_size: int, num_heads: int, head_dim: int, padding: int
) -> None:
    k, v = torch.randn(2, 4, 2 * num_heads, head_dim).to(dtype)[:, :, ::2]
    slots = slots_for(4, 3 * block_size, padding)
    caches = torch.randn(2, 3, num_heads, block_size, head_dim).to(dtype)
    expected = caches.clone()
    write_kv_torch(k, v, *expected, slots)
    with launching("write_kv_kernel"):
        write_kv(k, v, *caches, slots.int())
    assert torch.equal(caches, expected)


def test_a_step_without_tokens() -> None:
    k = torch.randn(0, 2, 16)
    write_kv(k, k, torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 8, 16), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rotary_dim, interleaved", [(0, False), (64, False), (24, False), (64, True), (24, True)])
@pytest.mark.parametrize("num_heads, num_kv_heads, head_dim", [(6, 2, 64), (18, 1, 80)])
def test_norm_rope_write(
    launching: Launching,
    dtype: torch.dtype,
    normed: bool,
    rotary_dim: int,
    interleaved: bool,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> None:
    num_tokens, block_size, total = 3, 8, num_heads + 2 * num_kv_heads
    qkv = torch.randn(num_tokens, total * head_dim).to(dtype)
    weights = torch.randn(2, head_dim).to(dtype) if normed else (None, None)
    tables = (
        rope_tables(torch.rand(rotary_dim // 2), torch.randint(0, 99, (num_tokens,))) if rotary_dim else (None, None)
    )
    slots = slots_for(num_tokens, 3 * block_size, padding=1)
    k_cache, v_cache = torch.zeros(2, 3, num_kv_heads, block_size, head_dim, dtype=dtype)
    with launching("norm_rope_write_kernel"):
        q = norm_rope_write(qkv, *weights, 1e-6, *tables, interleaved, k_cache, v_cache, slots, num_heads, num_kv_heads)

    heads = qkv.view(num_tokens, total, head_dim)
    expected_q, expected_k = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]

    def expected(x: Tensor, weight: Tensor | None) -> Tensor:
        x = x.double()
        if weight is not None:
            x = rms_norm_torch(x, weight.double(), 1e-6)
        if tables[0] is not None and tables[1] is not None:
            x = rotate_torch(x, tables[0].double(), tables[1].double(), interleaved)
        return x

    close: dict[str, Any] = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert_close(q.double(), expected(expected_q, weights[0]), **close)
    expected_k = expected(expected_k, weights[1])
    for t, slot in enumerate(slots.tolist()[1:], start=1):
        assert_close(k_cache[slot // block_size, :, slot % block_size].double(), expected_k[t], **close)
        written = v_cache[slot // block_size, :, slot % block_size]
        assert torch.equal(written, heads[t, num_heads + num_kv_heads :])
    assert int(v_cache.any(-1).any(1).sum()) == num_tokens - 1  # and nothing for padding


def test_a_cache_of_another_dtype() -> None:
    qkv = torch.randn(2, 4 * 16)
    k_cache, v_cache = torch.zeros(2, 1, 1, 8, 16, dtype=torch.float16)
    norm_rope_write(qkv, None, None, 1e-6, None, None, False, k_cache, v_cache, torch.tensor([3, 5]), 2, 1)
    assert_close(k_cache[0, 0, [3, 5]], qkv[:, 32:48].half())
    assert_close(v_cache[0, 0, [3, 5]], qkv[:, 48:].half())


def test_refusals() -> None:
    qkv, cache, slots = torch.randn(2, 4 * 16), torch.zeros(1, 1, 8, 16), torch.tensor([0, 1])

    def call(qkv: Tensor = qkv, cache: Tensor = cache, slots: Tensor = slots, weight: Tensor | None = None) -> None:
        norm_rope_write(qkv, weight, weight, 1e-6, None, None, False, cache, cache, slots, 2, 1)

    call()
    with pytest.raises(ValueError, match=r"norm_rope_write has no kernel for torch\.float64"):
        call(qkv=qkv.double())
    with pytest.raises(ValueError, match="is not rows of 2"):
        call(qkv=qkv[:, :62])
    with pytest.raises(ValueError, match=r"the KV cache has no kernel for torch\.float8_e4m3fn"):
        call(cache=cache.to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="does not hold 1 heads of 16 dims"):
        call(cache=torch.zeros(1, 2, 8, 16))
    with pytest.raises(ValueError, match="2 tokens need as many int32 or int64 slots"):
        call(slots=slots[:1])
    with pytest.raises(ValueError, match="a head of 16 dims is normed by as many"):
        call(weight=torch.ones(8))
    with pytest.raises(ValueError, match="have one shape and dtype"):
        write_kv(torch.ones(2, 1, 16), torch.ones(2, 1, 8), cache, cache, slots)
