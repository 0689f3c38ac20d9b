import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm

from .conftest import Launching

SHAPES = [(1, 64), (5, 123), (33, 96), (3, 1000), (2, 3, 80), (0, 64), (1, 5000)]
# One rounding of the result; the interpreter cuts float32 off where bfloat16 should round.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def strided(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., : shape[-1]]


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, centred: bool) -> Tensor:
    x = x.double()
    x = x - x.mean(-1, keepdim=True) if centred else x
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    return x if bias is None else x + bias.double()


def check(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    assert_close(actual.double(), expected, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(launching: Launching, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = strided(*shape, dtype=dtype) * 3 + 1
    weight, bias = torch.randn(shape[-1]), torch.randn(shape[-1]).to(dtype)
    check(rms_norm(x, weight, 1e-5), reference(x, weight, None, centred=False))
    check(layer_norm(x, weight.to(dtype), None, 1e-5), reference(x, weight.to(dtype), None, centred=True))
    if x.numel():
        with launching("norm_kernel"):
            check(layer_norm(x, weight, bias, 1e-5), reference(x, weight, bias, centred=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(7, 130), (1, 1536), (0, 8)], ids=str)
def test_adding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = strided(*shape, dtype=dtype), strided(*shape, dtype=dtype)
    before = x.clone(), residual.clone()
    weight, bias = torch.randn(2, shape[-1]).to(dtype)
    total = residual + x
    normed, summed = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(summed, total)
    check(normed, reference(total, weight, None, centred=False))
    normed, summed = add_layer_norm(x, residual, weight, bias, 1e-5)
    assert torch.equal(summed, total)
    check(normed, reference(total, weight, bias, centred=True))
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


def test_squares_do_not_overflow() -> None:
    x = torch.full((1, 512), 300.0, dtype=torch.float16)
    assert_close(rms_norm(x, torch.ones(512).half(), 1e-6), torch.ones(1, 512).half())


def test_refusals() -> None:
    x, weight = torch.randn(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"rms_norm has no kernel for torch\.float64"):
        rms_norm(x.double(), weight, 1e-6)
    with pytest.raises(ValueError, match="no kernel for rows of 16385: 1 to 16384"):
        rms_norm(torch.ones(1, 16385), torch.ones(16385), 1e-6)
    with pytest.raises(ValueError, match="adjacent channels, not a stride of 2"):
        rms_norm(x[:, ::2], weight[:4], 1e-6)
    with pytest.raises(ValueError, match="evenly spaced rows"):
        rms_norm(torch.randn(2, 3, 8)[:, :2], weight, 1e-6)
    with pytest.raises(ValueError, match="rows of 8 needs as many weights"):
        rms_norm(x, weight[:7], 1e-6)
    with pytest.raises(ValueError, match=r"adds torch\.float32"):
        add_rms_norm(x, x.half(), weight, 1e-6)
