import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.bidirectional import bidirectional_attention

LENGTHS = [3, 3, 1, 40, 40, 7, 300]  # neighbours of one length, and more than a tile of queries


def batch_of(lengths: list[int]) -> AttentionBatch:
    lens = torch.tensor(lengths, dtype=torch.int32)
    starts = torch.cat([lens.new_zeros(1), lens.cumsum(0).int()])
    return AttentionBatch(starts, lens, torch.zeros(len(lengths), 0, dtype=torch.int32), lengths, lengths)


def reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, window: int | None, bias: Tensor | None
) -> Tensor:
    """One sequence and one head at a time, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for start, length in zip(torch.tensor([0, *lengths]).cumsum(0).tolist(), lengths, strict=False):
        rows = slice(start, start + length)
        distance = torch.arange(length) - torch.arange(length)[:, None]
        for head in range(q.shape[1]):
            scores = q[rows, head].double() @ k[rows, head // group].double().T * scale
            if bias is not None:
                reach = bias.shape[1] // 2
                scores += bias[head].double()[distance.clamp(-reach, reach) + reach]
            if window is not None:
                scores[distance.abs() >= window] = -torch.inf
            out[rows, head] = scores.softmax(-1) @ v[rows, head // group].double()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 5, 130, 1000])
@pytest.mark.parametrize("reach", [None, 4, 500])
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 4, 12), (6, 2, 80)])
def test_bidirectional_attention(
    dtype: torch.dtype, window: int | None, reach: int | None, heads: int, kv_heads: int, head_dim: int
) -> None:
    qkv = torch.randn(sum(LENGTHS), heads + 2 * kv_heads, head_dim).to(dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)  # as they lie in a fused product
    bias = None if reach is None else torch.randn(heads, 2 * reach + 1)
    out = bidirectional_attention(q, k, v, batch_of(LENGTHS), 0.2, window, bias)
    assert out.dtype == dtype
    expected = reference(q, k, v, LENGTHS, 0.2, window, None if bias is None else bias.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert_close(out.double(), expected, rtol=tolerance, atol=2 * tolerance)
