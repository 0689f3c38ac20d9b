import pytest
import torch
from torch.testing import assert_close

from sirocco.kernels import linear
from sirocco.kernels.linear import PackedWeight, pack_linear, packed_linear, unpack_linear


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64), (130, 64), (0, 64)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("native", [True, False], ids=["native", "onednn"])
def test_packed_linear(
    shape: tuple[int, ...], with_bias: bool, wide: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(linear, "use_native", lambda weight: False)
    dtype = torch.bfloat16
    x = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., : shape[-1]]
    weight = torch.randn(97, shape[-1]).to(dtype)
    packed = pack_linear(weight)
    if not isinstance(packed, PackedWeight):
        pytest.skip("no products of bfloat16 on this processor")
    bias = torch.randn(97).to(dtype) if with_bias else None
    expected = x.double() @ weight.double().T
    expected = expected if bias is None else expected + bias.double()
    out = packed_linear(x, packed, bias, wide)
    assert out.shape == (*shape[:-1], 97) and out.dtype == (torch.float32 if wide else dtype)
    eps = torch.finfo(dtype).eps
    assert_close(out.double(), expected, rtol=2 * eps, atol=8 * eps)


def test_only_what_gains_is_packed() -> None:
    weight = torch.randn(32, 48)
    assert pack_linear(weight) is weight
    packed = pack_linear(weight.bfloat16())
    if isinstance(packed, PackedWeight):  # where oneDNN has bf16 products
        assert packed.shape == (32, 48) and packed.dtype == torch.bfloat16


@pytest.mark.parametrize("native", [True, False], ids=["native", "onednn"])
def test_packing_shares_no_memory_with_the_weight(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(linear, "use_native", lambda weight: False)
    weight = torch.nn.Parameter(torch.randn(64, 64).bfloat16())
    packed = pack_linear(weight)
    if not isinstance(packed, PackedWeight):
        pytest.skip("no products of bfloat16 on this processor")
    assert torch.equal(unpack_linear(packed), weight)
    expected = torch.nn.functional.linear(torch.ones(1, 64, dtype=torch.bfloat16), weight).detach()
    with torch.no_grad():
        weight.zero_()  # would show through shared memory
    assert_close(packed_linear(torch.ones(1, 64, dtype=torch.bfloat16), packed), expected, rtol=0.02, atol=0.1)
