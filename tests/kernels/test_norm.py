import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 64), (5, 123), (33, 1000), (2, 3, 80)]


def strided(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random rows with a gap between them."""
    return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., : shape[-1]]


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    rows = []
    for row in x.double().reshape(-1, x.shape[-1]):
        row = row - row.sum() / len(row) if centred else row
        row = row / ((row @ row) / len(row) + eps) ** 0.5 * weight.double()
        rows.append(row if bias is None else row + bias.double())
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wide_weight", [False, True])
def test_norms(dtype: torch.dtype, shape: tuple[int, ...], wide_weight: bool) -> None:
    x = strided(*shape, dtype=dtype) * 3 + 1
    weight, bias = torch.randn(2, shape[-1]).to(torch.float32 if wide_weight else dtype)
    normed = rms_norm(x, weight, 1e-5)
    assert normed.dtype == dtype
    assert_close(normed, reference(x, weight, None, 1e-5, centred=False).to(dtype))
    assert_close(layer_norm(x, weight, None, 1e-5), reference(x, weight, None, 1e-5, centred=True).to(dtype))
    assert_close(layer_norm(x, weight, bias, 1e-5), reference(x, weight, bias, 1e-5, centred=True).to(dtype))


def test_float64_is_kept() -> None:
    x, weight = torch.randn(4, 96, dtype=torch.float64), torch.randn(96, dtype=torch.float64)
    assert_close(rms_norm(x, weight, 1e-6), reference(x, weight, None, 1e-6, centred=False), rtol=1e-13, atol=1e-13)
    assert_close(
        layer_norm(x, weight, None, 1e-6), reference(x, weight, None, 1e-6, centred=True), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_squares_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 512), 300.0, dtype=dtype)  # the sum of squares is far beyond float16
    assert_close(rms_norm(x, torch.ones(512, dtype=dtype), 1e-6), torch.ones(1, 512, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adding_returns_the_normed_sum_and_the_sum(dtype: torch.dtype) -> None:
    x, residual = strided(7, 130, dtype=dtype), strided(7, 130, dtype=dtype)
    x_before, residual_before = x.clone(), residual.clone()
    weight, bias = torch.randn(2, 130).to(dtype)
    total = (x.double() + residual.double()).to(dtype)
    for normed, summed in (add_rms_norm(x, residual, weight, 1e-6), add_layer_norm(x, residual, weight, bias, 1e-6)):
        assert normed.dtype == summed.dtype == dtype
        assert_close(summed, total)
    normed, _ = add_rms_norm(x, residual, weight, 1e-6)
    assert_close(normed, reference(total, weight, None, 1e-6, centred=False).to(dtype))
    normed, _ = add_layer_norm(x, residual, weight, bias, 1e-6)
    assert_close(normed, reference(total, weight, bias, 1e-6, centred=True).to(dtype))
    assert torch.equal(x, x_before) and torch.equal(residual, residual_before)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = torch.randn(16, 257), torch.randn(257)
    assert torch.equal(rms_norm(x, weight, 1e-6)[3:4], rms_norm(x[3:4], weight, 1e-6))
    assert torch.equal(layer_norm(x, weight, None, 1e-6)[3:4], layer_norm(x[3:4], weight, None, 1e-6))
