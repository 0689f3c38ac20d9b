"""Linear layers whose weights are laid out once for the device, where that pays."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sirocco.kernels.backend import use_native
from sirocco.kernels.native import ops as native


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [N, K] in the layout of our C++ kernels, or else in oneDNN's; only `packed_linear` can read it."""

    blocks: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype
    native: bool = False

    @property
    def num_bytes(self) -> int:
        """Memory that it occupies."""
        return self.blocks.nbytes if self.native else self.shape[0] * self.shape[1] * self.dtype.itemsize


def pack_linear(weight: Tensor) -> PackedWeight | Tensor:
    """Lay weight [N, K] out for `packed_linear`; returns it untouched where no packed product exists.

    The packed form shares no memory with weight, so let go of weight afterwards.
    """
    shape = (weight.shape[0], weight.shape[1])
    if use_native(weight) and weight.shape[1] % 2 == 0 and native.has_products():
        return PackedWeight(native.pack(weight.detach()), shape, weight.dtype, native=True)
    if not _packable(weight):
        return weight
    # F.linear packs bf16 weights on every call: 1.6 to 2.1 times slower at one row (2048 x 8192, 2 cores with AVX-512).
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return PackedWeight(blocks, shape, weight.dtype)


def unpack_linear(packed: PackedWeight) -> Tensor:
    """The weight [N, K] that was laid out."""
    return native.unpack(packed.blocks, packed.shape[0]) if packed.native else packed.blocks.to_dense()


def packed_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, wide: bool = False) -> Tensor:
    """Return x [..., K] times the packed weight, transposed, plus bias [N], as [..., N]; all of the weight's dtype.

    A `wide` result is in float32, and where our kernels compute it has not been rounded before.
    """
    if packed.native:
        dtype = torch.float32 if wide else packed.dtype
        return native.linear(x, packed.blocks, packed.shape[0], bias, dtype)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed.blocks, bias, "none", [], "")
    return out.float() if wide else out


def _packable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
