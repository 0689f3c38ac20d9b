"""Rotary embeddings: from a `RopeSpec` to the cos and sin of a step's positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sirocco.kernels.rope import rope_tables
from sirocco.runtime.models.spec import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


@dataclass(frozen=True, slots=True)
class RopeTables:
    """cos and sin of the positions of one step, each [T, R / 2] in float32."""

    cos: Tensor
    sin: Tensor


class Rope(nn.Module):
    """The tables of one rotary embedding; layers that share its spec share its tables."""

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        super().__init__()
        inv_freq, self.scale = inverse_frequencies(spec)
        self.inv_freq = inv_freq.to(device)

    def forward(self, positions: Tensor) -> RopeTables:
        """Tables for positions [T]."""
        return RopeTables(*rope_tables(self.inv_freq, positions, self.scale))


def inverse_frequencies(spec: RopeSpec) -> tuple[Tensor, float]:
    """The frequencies [R / 2] and the factor on cos and sin.

    All in float32 and in the order of operations that checkpoints were trained with: at position 100,000 the last bit
    of a frequency moves an angle by 0.006.
    """
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    wavelengths = spec.theta**exponents  # over 2 pi
    match spec.scaling:
        case None:
            return 1.0 / wavelengths, 1.0
        case LinearScaling(factor):
            return 1.0 / wavelengths / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(1.0 / wavelengths, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(wavelengths, spec, scaling), scaling.attention_factor


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
