import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.rope import rope_tables, rotate, rotate_torch

from .conftest import Launching

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def tables(tokens: int, rotary_dim: int) -> tuple[Tensor, Tensor]:
    return rope_tables(torch.rand(rotary_dim // 2), torch.randint(0, 1000, (tokens,)))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "tokens, heads, head_dim, rotary_dim", [(1, 1, 64, 64), (3, 3, 80, 32), (2, 18, 96, 96), (0, 2, 8, 8), (2, 5, 6, 2)]
)
def test_rotate(
    launching: Launching, dtype: torch.dtype, interleaved: bool, tokens: int, heads: int, head_dim: int, rotary_dim: int
) -> None:
    x = torch.randn(tokens, heads + 2, head_dim).to(dtype)[:, 1:-1]  # as q lies within qkv
    cos, sin = tables(tokens, rotary_dim)
    before = x.clone()
    expected = rotate_torch(x.double(), cos.double(), sin.double(), interleaved)
    actual = rotate(x, cos, sin, interleaved)
    assert actual.dtype == dtype and actual.is_contiguous()
    assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])
    assert torch.equal(actual[..., rotary_dim:], x[..., rotary_dim:]) and torch.equal(x, before)
    if tokens:
        with launching("rotate_kernel"):
            rotate(x, cos, sin, interleaved)


def test_refusals() -> None:
    x = torch.randn(3, 2, 16)
    cos, sin = tables(3, 16)
    with pytest.raises(ValueError, match=r"rotary tables are float32 on a GPU, not torch\.float16"):
        rotate(x, cos.half(), sin.half())
    with pytest.raises(ValueError, match=r"rotary tables \(2, 8\) do not fit 3 tokens of 16 dims"):
        rotate(x, cos[:2], sin[:2])
    with pytest.raises(ValueError, match=r"do not fit 3 tokens of 8 dims"):
        rotate(x[..., :8], cos, sin)
    with pytest.raises(ValueError, match="adjacent dims, not a stride of 2"):
        rotate(x[..., ::2], cos[:, :4], sin[:, :4])
    with pytest.raises(ValueError, match="equal strides"):
        rotate(x, cos, sin.repeat(1, 2)[:, :8])
