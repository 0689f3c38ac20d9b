"""The feed-forward of a layer, gated or not."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from sirocco.kernels.activation import activation, geglu, swiglu
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.linear import FusedLinear, Linear
from sirocco.runtime.models.spec import MlpSpec

GATES = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": swiglu,
    "gelu": partial(geglu, tanh=False),
    "gelu_tanh": partial(geglu, tanh=True),
}


def gate_of(spec: MlpSpec) -> str:
    """Which of GATED an activation's name means."""
    if spec.activation not in GATES:
        raise ModelLoadError(f"unknown activation {spec.activation!r} of a gated feed-forward")
    return GATES[spec.activation]


class GatedMlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, gate and up in one product."""

    def __init__(self, spec: MlpSpec, width: int) -> None:
        super().__init__()
        self.gate = gate_of(spec)
        self.activation = GATED[self.gate]
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
        try:
            self.activation = activation(spec.activation)
        except ValueError as error:
            raise ModelLoadError(str(error)) from None
        self.up = Linear(width, spec.hidden, spec.bias)
        self.down = Linear(spec.hidden, width, spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, C] to [T, C]."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


def make_mlp(spec: MlpSpec, width: int) -> nn.Module:
    return GatedMlp(spec, width) if spec.gated else Mlp(spec, width)
