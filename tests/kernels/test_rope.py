import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.rope import rope_tables, rotate


def reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """One complex number at a time."""
    out = x.double().clone()
    half = cos.shape[-1]
    for t in range(x.shape[0]):
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            pair = torch.complex(x[t, :, a].double(), x[t, :, b].double())
            turned = pair * complex(cos[t, i].item(), sin[t, i].item())
            out[t, :, a], out[t, :, b] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "tokens, heads, head_dim, rotary_dim", [(1, 1, 64, 64), (5, 3, 80, 32), (7, 2, 96, 96), (3, 5, 6, 2)]
)
def test_rotate(dtype: torch.dtype, interleaved: bool, tokens: int, heads: int, head_dim: int, rotary_dim: int) -> None:
    x = torch.randn(tokens, heads + 2, head_dim).to(dtype)[:, 1:-1]  # as q lies within qkv
    cos, sin = rope_tables(torch.rand(rotary_dim // 2), torch.randint(0, 1000, (tokens,)))
    before = x.clone()
    turned = rotate(x, cos, sin, interleaved)
    assert turned.dtype == dtype and turned.is_contiguous()
    assert_close(turned, reference(x, cos, sin, interleaved).to(dtype))
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])
    assert torch.equal(x, before)


@pytest.mark.parametrize("interleaved", [False, True])
def test_many_tokens_are_turned_like_few(interleaved: bool) -> None:
    x = torch.randn(700, 8, 64)
    cos, sin = rope_tables(torch.rand(32), torch.arange(700))
    few = torch.cat([rotate(x[t : t + 1], cos[t : t + 1], sin[t : t + 1], interleaved) for t in range(700)])
    assert_close(rotate(x, cos, sin, interleaved), few, rtol=1e-6, atol=1e-6)


def test_tables() -> None:
    inv_freq = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    positions = torch.tensor([0, 1, 17, 5000])
    cos, sin = rope_tables(inv_freq, positions)
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (4, 4)
    for t, position in enumerate(positions.tolist()):
        for i, frequency in enumerate(inv_freq.tolist()):
            angle = torch.tensor(position * frequency).item()  # the product is rounded to float32
            assert cos[t, i].item() == pytest.approx(math.cos(angle), abs=5e-4 if position > 1000 else 2e-6)
            assert sin[t, i].item() == pytest.approx(math.sin(angle), abs=5e-4 if position > 1000 else 2e-6)


def test_half_precision_frequencies_do_not_round_positions() -> None:
    cos, _ = rope_tables(torch.ones(1, dtype=torch.bfloat16), torch.tensor([257]))  # 257 is not a bfloat16
    assert cos.item() == pytest.approx(math.cos(257), abs=1e-5)


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 64, dtype=torch.float64)
    inv_freq = (10000.0 ** -(torch.arange(0, 64, 2) / 64)).double()
    scores = []
    for position in (3, 40, 4000):
        (cos_q, sin_q), (cos_k, sin_k) = (rope_tables(inv_freq, torch.tensor([p])) for p in (position, position - 3))
        scores.append((rotate(q, cos_q, sin_q) * rotate(k, cos_k, sin_k)).sum())
    assert_close(torch.stack(scores), scores[0].expand(3))
