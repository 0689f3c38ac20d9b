"""The Mamba-2 mixer: a convolution over the last tokens, then a state per head that each token decays and adds to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sirocco.kernels.mamba import causal_conv, gated_rms_norm, state_space_scan
from sirocco.runtime.models.cache import StateCache
from sirocco.runtime.models.linear import Linear
from sirocco.runtime.models.norm import RmsNorm
from sirocco.runtime.models.spec import MambaSpec
from sirocco.runtime.models.step import Step
from sirocco.runtime.weights import Loadable, Slot


class Convolution(Loadable):
    """A filter of W taps for each channel: `weight` [D, W], `bias` [D]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, spec: MambaSpec) -> None:
        super().__init__()
        self.spec = spec

    def slots(self) -> dict[str, Slot]:
        slots = {"weight": Slot((self.spec.conv_dim,), (1, self.spec.conv_width))}
        if self.spec.conv_bias:
            slots["bias"] = Slot((self.spec.conv_dim,))
        return slots

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.weight = tensors.pop("weight").squeeze(1)
        self.bias = tensors.pop("bias", None)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class HeadConstants(Loadable):
    """What each head has of its own, in float32: a rate `a`, a skip `d` and a bias on the time step, all [H]."""

    a: Tensor
    d: Tensor
    step_bias: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def slots(self) -> dict[str, Slot]:
        return {name: Slot((self.num_heads,), dtype=torch.float32) for name in ("A_log", "D", "dt_bias")}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.a = tensors.pop("A_log").exp_().neg_()
        self.d, self.step_bias = tensors.pop("D"), tensors.pop("dt_bias")

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.d.nbytes + self.step_bias.nbytes


class Mamba(nn.Module):
    """One product for gate, inputs and time steps; convolution; scan; gated norm; output."""

    def __init__(self, spec: MambaSpec, width: int, rope_index: int | None) -> None:
        super().__init__()
        assert rope_index is None, "a recurrent mixer knows positions by order"
        self.spec = spec
        self.in_proj = Linear(width, spec.inner + spec.conv_dim + spec.num_heads, spec.bias)
        self.conv = Convolution(spec)
        self.heads = HeadConstants(spec.num_heads)
        self.norm = RmsNorm(spec.norm, spec.inner)
        self.out_proj = Linear(spec.inner, width, spec.bias)

    def forward(self, x: Tensor, step: Step, cache: StateCache) -> Tensor:
        """x [T, C] to [T, C]; moves each request's state on."""
        spec, states = self.spec, step.states
        assert states is not None, "a model with recurrent state needs to know where it lies"
        gate, convolved, dt = self.in_proj(x).split([spec.inner, spec.conv_dim, spec.num_heads], dim=-1)
        convolved = causal_conv(convolved, self.conv.weight, self.conv.bias, cache.tensors["conv"], states)
        shared = spec.num_groups * spec.state_size
        inputs, b, c = convolved.split([spec.inner, shared, shared], dim=-1)
        y = state_space_scan(
            inputs.unflatten(-1, (spec.num_heads, -1)),
            self._time_steps(dt),
            self.heads.a,
            b.unflatten(-1, (spec.num_groups, -1)),
            c.unflatten(-1, (spec.num_groups, -1)),
            self.heads.d,
            cache.tensors["ssm"],
            states,
        )
        y = gated_rms_norm(y.flatten(1), gate, self.norm.weight, spec.norm.eps, spec.num_groups)
        out: Tensor = self.out_proj(y)
        return out

    def _time_steps(self, dt: Tensor) -> Tensor:
        """[T, H] in float32, positive and within the spec's limits."""
        steps = F.softplus(dt.float() + self.heads.step_bias)
        return steps.clamp_(self.spec.min_step, self.spec.max_step)
