"""Linear layers over a weight in whatever form suits the device and the checkpoint."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from sirocco.kernels.linear import PackedWeight as Packed
from sirocco.kernels.linear import pack_linear, packed_linear, unpack_linear
from sirocco.runtime.weights import Loadable, Slot


class Weight(Protocol):
    """A matrix [N, K] in some storage form."""

    @property
    def num_bytes(self) -> int: ...

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] times the transposed matrix, plus bias [N]: [..., N]."""
        ...

    def dense(self) -> Tensor:
        """The matrix expanded to [N, K] in the run dtype."""
        ...


class DenseWeight:
    """A plain tensor, on any device and in any floating dtype."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def num_bytes(self) -> int:
        return self.tensor.nbytes

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.tensor, bias)

    def dense(self) -> Tensor:
        return self.tensor


class PackedWeight:
    """A matrix in the CPU library's own blocking, so that no product packs it again."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    @property
    def num_bytes(self) -> int:
        return self.packed.num_bytes

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return packed_linear(x, self.packed, bias)

    def dense(self) -> Tensor:
        return unpack_linear(self.packed)


def make_weight(tensor: Tensor) -> Weight:
    """The form of a dense matrix [N, K] that multiplies fastest where it lives."""
    packed = pack_linear(tensor)
    return DenseWeight(packed) if isinstance(packed, Tensor) else PackedWeight(packed)


def scores(weight: Weight, x: Tensor, bias: Tensor | None) -> Tensor:
    """Logits [R, V] in float32 of x [R, C]: what is sampled from need not be rounded to the run dtype."""
    if isinstance(weight, PackedWeight):
        return packed_linear(x, weight.packed, bias, wide=True)
    return weight.matmul(x, bias).float()


class Linear(Loadable):
    """`x @ weight.T + bias`; empty until weights are assigned."""

    weight: Weight
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.has_bias = bias

    def parts(self) -> tuple[int, ...]:
        """Output rows of each source tensor that makes up this layer."""
        return (self.out_features,)

    def slots(self) -> dict[str, Slot]:
        slots = {"weight": Slot(self.parts(), (self.in_features,))}
        if self.has_bias:
            slots["bias"] = Slot(self.parts())
        return slots

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.bias = tensors.get("bias")
        self.weight = make_weight(tensors.pop("weight"))

    @property
    def num_bytes(self) -> int:
        return self.weight.num_bytes + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] to [..., N]."""
        return self.weight.matmul(x, self.bias)


class Head(Linear):
    """A linear layer whose outputs are logits, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x [R, C] to [R, V]."""
        return scores(self.weight, x, self.bias)


class FusedLinear(Linear):
    """Several linear layers of one input as one product; `slices` names the output range of each."""

    def __init__(self, in_features: int, outputs: Mapping[str, int], bias: bool = False) -> None:
        super().__init__(in_features, sum(outputs.values()), bias)
        self.slices: dict[str, slice] = {}
        start = 0
        for name, size in outputs.items():
            self.slices[name] = slice(start, start + size)
            start += size

    def parts(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.slices.values())
