"""Checkpoints in FP8 with a scale for each block of a matrix (DeepSeek-V3): read as what they stand for."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.config import Fields
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.safetensors_file import Entry

SCALE = "_scale_inv"
_AT_ONCE = 64 << 20  # bytes of FP8 that are expanded at a time


def block_shape(quantisation: Fields) -> tuple[int, int]:
    """Rows and columns of a block. Raises `ModelLoadError` where config.json does not say."""
    sizes = quantisation.integers("weight_block_size")
    if sizes is None:
        raise quantisation.error("weight_block_size", "is missing: FP8 without blocks is not supported")
    if len(sizes) != 2 or min(sizes) < 1:
        raise quantisation.error("weight_block_size", "must be two positive integers")
    return sizes[0], sizes[1]


class BlockFp8Checkpoint(Checkpoint):
    """Shows matrices as bfloat16 and keeps their scales to itself."""

    def __init__(self, folder: Path, block: tuple[int, int], prefixes: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, prefixes)
        self.block = block
        self._packed: dict[str, Entry] = {}
        self._scales: dict[str, Tensor] = {}
        try:
            for name in [name for name in self if name.endswith(SCALE)]:
                self._take_scales(name)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, out: Tensor) -> None:
        """Copy a tensor into `out`, expanding it where it is in FP8."""
        scales = self._scales.get(name)
        if scales is None:
            super().read(name, out)
            return
        rows, columns = self.block
        values = torch.empty(out.shape, dtype=self._packed[name].dtype)
        file, _ = self._where[name]
        file.read(self._packed[name], values)
        step = max(1, _AT_ONCE // (rows * out.shape[1])) * rows
        for first in range(0, len(out), step):
            part = slice(first, first + step)
            wide = values[part].float()
            by_row = scales[first // rows : -(-(first + len(wide)) // rows)].repeat_interleave(columns, 1)
            wide.mul_(by_row[:, : wide.shape[1]].repeat_interleave(rows, 0)[: len(wide)])
            out[part] = wide.to(out.device)

    def map(self, name: str, dtype: torch.dtype) -> Tensor | None:
        return None if name in self._scales else super().map(name, dtype)

    def _take_scales(self, scale_name: str) -> None:
        name = scale_name.removesuffix(SCALE)
        if name not in self:
            raise ModelLoadError(f"tensor {scale_name!r} scales a tensor that is missing")
        file, entry = self._where[name]
        expected = tuple(-(-size // block) for size, block in zip(entry.shape, self.block, strict=False))
        scales = self[scale_name]
        if len(entry.shape) != 2 or scales.shape != expected or entry.dtype != torch.float8_e4m3fn:
            raise ModelLoadError(
                f"tensor {scale_name!r} does not fit {name!r}, {entry.dtype} of the shape {list(entry.shape)}"
            )
        self._scales[name] = torch.empty(scales.shape)
        super().read(scale_name, self._scales[name])
        self._packed[name] = entry
        shown = Entry(torch.bfloat16, entry.shape, entry.start, math.prod(entry.shape))
        self._where[name] = (file, shown)
        del self._where[scale_name]
