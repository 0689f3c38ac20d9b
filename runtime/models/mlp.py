"""The feed-forward of a layer, gated or not."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from sirocco.kernels.activation import Activation, activation, gated, kind_of
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.linear import FusedLinear, Linear
from sirocco.runtime.models.spec import MlpSpec

T = TypeVar("T")


def gate_of(spec: MlpSpec) -> str:
    """Which of the kernels' activations the feed-forward's is. Raises `ModelLoadError` where they have none such."""
    return _known(kind_of, spec)


def gated_by(spec: MlpSpec) -> Activation:
    """What a gated feed-forward does between its products. Raises `ModelLoadError` as `gate_of` does."""
    return _known(gated, spec)


def _known(find: Callable[[str], T], spec: MlpSpec) -> T:
    try:
        return find(spec.activation)
    except ValueError as error:
        raise ModelLoadError(str(error)) from None


class GatedMlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, gate and up in one product."""

    def __init__(self, spec: MlpSpec, width: int) -> None:
        super().__init__()
        self.gate, self.activation = gate_of(spec), gated_by(spec)
        self.gate_up = FusedLinear(width, {"gate": spec.hidden, "up": spec.hidden}, spec.bias)
        self.down = Linear(spec.hidden, width, spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, C] to [T, C]."""
        out: Tensor = self.down(self.activation(self.gate_up(x)))
        return out


class Mlp(nn.Module):
    """`down(act(up(x)))`."""

    def __init__(self, spec: MlpSpec, width: int) -> None:
        super().__init__()
        self.activation = _known(activation, spec)
        self.up = Linear(width, spec.hidden, spec.bias)
        self.down = Linear(spec.hidden, width, spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, C] to [T, C]."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


def make_mlp(spec: MlpSpec, width: int) -> nn.Module:
    return GatedMlp(spec, width) if spec.gated else Mlp(spec, width)
