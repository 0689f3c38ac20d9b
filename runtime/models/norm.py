"""Norms as modules, which also add to the residual stream where one runs past."""

from torch import Tensor

from sirocco.kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from sirocco.runtime.models.spec import NormSpec
from sirocco.runtime.weights import Loadable, Slot


class RmsNorm(Loadable):
    """Root-mean-square norm of the last axis; `weight` is [C]."""

    weight: Tensor

    def __init__(self, spec: NormSpec, size: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.size = size
        self.unit_offset = spec.unit_offset

    def slots(self) -> dict[str, Slot]:
        return {"weight": Slot((self.size,))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        weight = tensors.pop("weight")
        self.weight = weight.float() + 1 if self.unit_offset else weight  # the sum does not fit bfloat16

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add x [T, C] to the residual stream; return its norm and the new stream. Without a stream, x starts one."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps), x
        return add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(Loadable):
    """Norm by mean and variance of the last axis; `weight` and `bias` are [C]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, spec: NormSpec, size: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.size = size
        self.has_bias = spec.bias

    def slots(self) -> dict[str, Slot]:
        return {name: Slot((self.size,)) for name in (("weight", "bias") if self.has_bias else ("weight",))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.weight = tensors.pop("weight")
        self.bias = tensors.pop("bias", None)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add x [T, C] to the residual stream; return its norm and the new stream. Without a stream, x starts one."""
        if residual is None:
            return layer_norm(x, self.weight, self.bias, self.eps), x
        return add_layer_norm(x, residual, self.weight, self.bias, self.eps)


Norm = RmsNorm | LayerNorm


def make_norm(spec: NormSpec, size: int) -> Norm:
    return RmsNorm(spec, size) if spec.kind == "rms" else LayerNorm(spec, size)
