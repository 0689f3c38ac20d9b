"""Rotary embeddings: from a `RopeSpec` to the cos and sin of a step's positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sirocco.kernels.rope import rope_tables
from sirocco.runtime.models.spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeSpec,
    YarnScaling,
)


@dataclass(frozen=True, slots=True)
class RopeTables:
    """cos and sin of the positions of one step, each [T, R / 2] in float32."""

    cos: Tensor
    sin: Tensor


class Rope(nn.Module):
    """The tables of one rotary embedding; layers that share its spec share its tables."""

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        super().__init__()
        self.frequencies = _FREQUENCIES.get(type(spec.scaling), StaticFrequencies)(spec, device)

    def forward(self, positions: Tensor, regimes: Tensor | None = None) -> RopeTables:
        """Tables for positions [T] of requests in these regimes [T]."""
        inv_freq, scale = self.frequencies(regimes)
        cos, sin = rope_tables(inv_freq, positions)
        return RopeTables(cos, sin) if scale is None else RopeTables(cos * scale, sin * scale)


class StaticFrequencies:
    """The same [R / 2] for every token."""

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        inv_freq, scale = inverse_frequencies(spec)
        self.inv_freq = inv_freq.to(device)
        self.scale = None if scale == 1.0 else scale

    def __call__(self, regimes: Tensor | None) -> tuple[Tensor, float | None]:
        return self.inv_freq, self.scale


class LongropeFrequencies:
    """A row [R / 2] for short requests and one for long ones."""

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        scaling = spec.scaling
        assert isinstance(scaling, LongropeScaling)
        factors = torch.tensor([scaling.short_factors, scaling.long_factors], dtype=torch.float32)
        self.inv_freq = (1.0 / (factors * wavelengths(spec))).to(device)
        self.scales = torch.tensor([[scaling.short_attention_factor], [scaling.long_attention_factor]], device=device)

    def __call__(self, regimes: Tensor | None) -> tuple[Tensor, Tensor]:
        if regimes is None:
            return self.inv_freq[0], self.scales[0]
        return self.inv_freq[regimes], self.scales[regimes]


class DynamicFrequencies:
    """A base for each length, which is the regime."""

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        assert isinstance(spec.scaling, DynamicScaling)
        self.spec, self.scaling = spec, spec.scaling
        self.exponents = exponents(spec).to(device)

    def __call__(self, regimes: Tensor | None) -> tuple[Tensor, None]:
        if regimes is None:
            return 1.0 / self.spec.theta**self.exponents, None
        factor, original, size = self.scaling.factor, self.scaling.original_max_len, self.spec.rotary_dim
        lengths = regimes.clamp_min(original)[:, None]
        growth = (factor * lengths / original - (factor - 1)) ** (size / (size - 2))
        return 1.0 / (self.spec.theta * growth) ** self.exponents, None


Frequencies = StaticFrequencies | LongropeFrequencies | DynamicFrequencies
_FREQUENCIES: dict[type, type[Frequencies]] = {
    LongropeScaling: LongropeFrequencies,
    DynamicScaling: DynamicFrequencies,
}


def exponents(spec: RopeSpec) -> Tensor:
    return torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim


def wavelengths(spec: RopeSpec) -> Tensor:
    """Over 2 pi, [R / 2]."""
    lengths: Tensor = spec.theta ** exponents(spec)
    return lengths


def inverse_frequencies(spec: RopeSpec) -> tuple[Tensor, float]:
    """The frequencies [R / 2] and the factor on cos and sin.

    All in float32 and in the order of operations that checkpoints were trained with: at position 100,000 the last bit
    of a frequency moves an angle by 0.006.
    """
    lengths = wavelengths(spec)
    match spec.scaling:
        case LinearScaling(factor):
            return 1.0 / lengths / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(1.0 / lengths, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(lengths, spec, scaling), scaling.attention_factor
        case _:
            return 1.0 / lengths, 1.0


def _llama3(inv_freq: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / inv_freq
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_len / wavelengths - low) / (high - low)
    between = (1 - smooth) * inv_freq / scaling.factor + smooth * inv_freq
    scaled = torch.where(wavelengths > scaling.original_max_len / low, inv_freq / scaling.factor, between)
    return torch.where(wavelengths < scaling.original_max_len / high, inv_freq, scaled)


def _yarn(wavelengths: Tensor, spec: RopeSpec, scaling: YarnScaling) -> Tensor:
    def dimension(rotations: float) -> float:
        """The (fractional) dimension that turns this often within the original context."""
        turns = scaling.original_max_len / (rotations * 2 * math.pi)
        return spec.rotary_dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    ramp = ((torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (scaling.factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep
