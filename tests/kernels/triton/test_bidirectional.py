"""The kernel of bidirectional attention, interpreted, against float64: one sequence and one head at a time."""

import os

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.bidirectional import bidirectional_attention, check_bidirectional_attention
from sirocco.kernels.triton import bidirectional
from sirocco.kernels.triton.common import Options

from ..test_bidirectional import batch_of, reference
from .conftest import Launching

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3}
if "SIROCCO_TEST_DEVICE" in os.environ:
    TOLERANCE[torch.bfloat16] = 3e-2  # the interpreter truncates to bfloat16

LENGTHS = [3, 17, 1, 40, 16, 55]


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Options:
    """Small tiles, so that short sequences reach beyond a tile and a step of the loop; tests change them."""
    chosen = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(bidirectional, "tuned", lambda family, kernel, size: dict(chosen))
    return chosen


def check(
    lengths: list[int] = LENGTHS,
    heads: tuple[int, int] = (2, 2),
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    reach: int | None = None,
) -> None:
    num_heads, num_kv_heads = heads
    qkv = torch.randn(sum(lengths), num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)  # as they lie in a fused product
    bias = None if reach is None else torch.randn(num_heads, 2 * reach + 1)
    out = bidirectional_attention(q, k, v, batch_of(lengths), 0.2, window, bias)
    expected = reference(q, k, v, lengths, 0.2, window, bias)
    assert out.dtype == dtype
    assert_close(out, expected.to(dtype), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reach", [None, 4])
@pytest.mark.parametrize("window", [None, 18])
def test_sequences_of_all_lengths(
    options: Options, launching: Launching, dtype: torch.dtype, reach: int | None, window: int | None
) -> None:
    with launching("bidirectional_kernel"):
        check(dtype=dtype, window=window, reach=reach)


@pytest.mark.parametrize("window", [1, 2, 16, 17, 1000])
def test_window(options: Options, window: int) -> None:
    check([50, 20], heads=(1, 1), window=window)


@pytest.mark.parametrize("rows, keys", [(16, 32), (64, 16), (32, 64)])
@pytest.mark.parametrize("window", [None, 20])
def test_tiles_and_steps_of_unlike_sizes(options: Options, rows: int, keys: int, window: int | None) -> None:
    options |= {"BLOCK_M": rows, "BLOCK_N": keys}
    check([75, 9], heads=(1, 1), window=window)


@pytest.mark.parametrize("head_dim", [8, 12, 80, 256])
def test_head_dims(options: Options, head_dim: int) -> None:
    check([20, 7], heads=(1, 1), head_dim=head_dim)


@pytest.mark.parametrize("heads", [(6, 2), (3, 1), (5, 5)])
def test_grouped_heads(options: Options, heads: tuple[int, int]) -> None:
    check([20, 7], heads=heads, reach=30)


def test_shipped_options() -> None:
    check([70, 1], heads=(1, 1), head_dim=64)


def test_empty_sequences(options: Options) -> None:
    check([0, 5, 0, 17])
    check([])


def test_layers_of_one_step_share_their_tiles(options: Options) -> None:
    x = torch.randn(20, 2, 32)
    batch = batch_of([20])
    for window in (None, 8, None):
        bidirectional_attention(x, x, x, batch, 0.2, window)
    assert len(batch.work) == 1


@pytest.mark.parametrize(
    "head_dim, dtype, message", [(257, torch.float16, "head_dim of 257"), (64, torch.float64, "float64")]
)
def test_refusals(head_dim: int, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_bidirectional_attention(head_dim, dtype, torch.get_default_device())
    x = torch.zeros(1, 1, head_dim, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        bidirectional_attention(x, x, x, batch_of([1]), 1.0)


@pytest.mark.parametrize(
    "k, bias, message",
    [
        (torch.zeros(4, 2, 32).half(), None, r"keys and values of torch\.float32"),
        (torch.zeros(4, 2, 64)[..., ::2], None, "adjacent dims"),
        (torch.zeros(4, 2, 32), torch.zeros(1, 9), "2 heads"),
        (torch.zeros(4, 2, 32), torch.zeros(9, 2).T, "not adjacent"),
    ],
)
def test_what_does_not_fit_is_refused(k: Tensor, bias: Tensor | None, message: str) -> None:
    x = torch.zeros(4, 2, 32)
    batch: AttentionBatch = batch_of([4])
    with pytest.raises(ValueError, match=message):
        bidirectional_attention(x, k, x, batch, 1.0, None, bias)
