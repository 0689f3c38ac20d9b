import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.kv import norm_rope_write, write_kv
from sirocco.kernels.norm import rms_norm
from sirocco.kernels.rope import rope_tables, rotate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def slots_for(num_tokens: int, num_slots: int) -> Tensor:
    return torch.randperm(num_slots)[:num_tokens].int()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_write_touches_its_slots_alone(dtype: torch.dtype, padding: int, block_size: int) -> None:
    num_tokens, num_heads, head_dim, num_blocks = 9, 3, 80, 4
    k, v = torch.randn(2, num_tokens, 2 * num_heads, head_dim).to(dtype)[:, :, ::2]
    slots = slots_for(num_tokens, num_blocks * block_size)
    slots[:padding] = -1
    k_cache, v_cache = torch.randn(2, num_blocks, num_heads, block_size, head_dim).to(dtype)
    expected = []
    for new, cache in ((k, k_cache), (v, v_cache)):
        copy = cache.clone()
        for t, slot in enumerate(slots.tolist()):
            if slot >= 0:
                copy[slot // block_size, :, slot % block_size] = new[t]
        expected.append(copy)
    write_kv(k, v, k_cache, v_cache, slots)
    assert torch.equal(k_cache, expected[0]) and torch.equal(v_cache, expected[1])


def test_a_step_of_padding_alone_writes_nothing() -> None:
    k_cache, v_cache = torch.zeros(2, 2, 1, 8, 16)
    write_kv(torch.ones(3, 1, 16), torch.ones(3, 1, 16), k_cache, v_cache, torch.full((3,), -1))
    assert not k_cache.any() and not v_cache.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rotated, interleaved", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("num_heads, num_kv_heads", [(4, 4), (6, 2), (8, 1)])
def test_norm_rope_write(
    dtype: torch.dtype, normed: bool, rotated: bool, interleaved: bool, num_heads: int, num_kv_heads: int
) -> None:
    num_tokens, head_dim, block_size = 5, 64, 8
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    q_weight, k_weight = torch.randn(2, head_dim).to(dtype) if normed else (None, None)
    cos, sin = rope_tables(torch.rand(16), torch.randint(0, 99, (num_tokens,))) if rotated else (None, None)
    k_cache, v_cache = torch.zeros(2, 3, num_kv_heads, block_size, head_dim, dtype=dtype)
    slots = slots_for(num_tokens, 3 * block_size)
    q = norm_rope_write(
        qkv, q_weight, k_weight, 1e-6, cos, sin, interleaved, k_cache, v_cache, slots, num_heads, num_kv_heads
    )

    q_end, k_end = num_heads * head_dim, (num_heads + num_kv_heads) * head_dim
    expected = {}
    for name, part, weight in (("q", qkv[:, :q_end], q_weight), ("k", qkv[:, q_end:k_end], k_weight)):
        heads = part.reshape(num_tokens, -1, head_dim)
        heads = heads if weight is None else rms_norm(heads, weight, 1e-6)
        expected[name] = heads if cos is None or sin is None else rotate(heads, cos, sin, interleaved)
    assert q.shape == (num_tokens, num_heads, head_dim)
    assert_close(q, expected["q"])
    for t, slot in enumerate(slots.tolist()):
        assert_close(k_cache[slot // block_size, :, slot % block_size], expected["k"][t])
        assert torch.equal(v_cache[slot // block_size, :, slot % block_size].flatten(), qkv[t, k_end:])
    assert int(v_cache.any(-1).any(1).sum()) == num_tokens
