"""MXFP4 weights: 4-bit floats in blocks of 32 that share a power of two (OCP Microscaling Formats 1.0).

A value is e2m1 (sign, two bits of exponent, one of mantissa), a scale e8m0 (2^(byte - 127)): both exact in bfloat16.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
_E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_PAIR_DTYPES = {2: torch.int32, 4: torch.int64, 8: torch.complex128}  # that hold two values of so many bytes
_PANEL_BYTES = 1 << 20  # of expanded weights that should still be in L2 when they are multiplied
_FEW_ROWS = 32  # up to which products are bound by reading weights


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Expand blocks [..., G, 16] (the low nibble first) times scales [..., G], both uint8, to [..., 32 G] in dtype."""
    # One lookup for both nibbles of a byte: a third of the time of two lookups and an interleaving.
    pairs = _pairs(dtype, blocks.device).index_select(0, blocks.flatten().int())
    values = pairs.view(dtype).view(*scales.shape, BLOCK)
    powers = _powers(dtype, blocks.device).index_select(0, scales.flatten().int()).view(scales.shape)
    return values.mul_(powers[..., None]).flatten(-2)


@dataclass(frozen=True, slots=True, eq=False)
class Mxfp4Weight:
    """A matrix [N, 32 G] kept as blocks [N, G, 16] and scales [N, G], multiplied in `dtype`.

    On a CPU every product of an expert that has rows expands it anew, a panel that stays in L2 at a time. That takes
    0.8 ns a value and thread (AVX-512, torch 2.13; one lookup for four values saves a tenth, other panels nothing): for
    one row some five times what reading packed bfloat16 takes, which would need four times the memory instead, 38 GB in
    place of 10 for the experts of GPT-OSS-20b. A GPU's kernel expands in registers.
    """

    blocks: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes + self.scales.nbytes

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [R, K] times the transposed matrix, plus bias [N]: [R, N]."""
        row_bytes = BLOCK * self.scales.shape[1] * self.dtype.itemsize
        step = max(1, _PANEL_BYTES // row_bytes) if len(x) <= _FEW_ROWS else len(self.blocks)
        panels = zip(self.blocks.split(step), self.scales.split(step), strict=True)
        out = torch.cat([F.linear(x, dequantize_mxfp4(*panel, self.dtype)) for panel in panels], -1)
        return out if bias is None else out.add_(bias)

    def dense(self) -> Tensor:
        """The matrix expanded to [N, K]."""
        return dequantize_mxfp4(self.blocks, self.scales, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Mxfp4Stack:
    """Matrices [E, N, 32 G] of all experts side by side: blocks [E, N, G, 16] and scales [E, N, G]."""

    blocks: Tensor
    scales: Tensor

    def __len__(self) -> int:
        return len(self.scales)

    def matrices(self, dtype: torch.dtype) -> Iterator[Mxfp4Weight]:
        """Each expert's matrix alone, over the same memory."""
        return (Mxfp4Weight(*parts, dtype) for parts in zip(self.blocks, self.scales, strict=True))


@functools.cache
def _powers(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The power of two of each scale [256]; made on the CPU, since MPS lacks the type of a scale."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).to(dtype).to(device)


@functools.cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two values of each byte [256], as one element."""
    values = torch.tensor(_E2M1 + [-value for value in _E2M1], dtype=dtype)
    codes = torch.arange(256)
    pairs = torch.stack((values[codes % 16], values[codes // 16]), -1)
    return pairs.view(_PAIR_DTYPES[dtype.itemsize]).squeeze(-1).to(device)
