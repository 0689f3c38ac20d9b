"""One safetensors file: its header is checked before a byte of weights is read, tensors are read one at a time."""

import json
import math
import mmap
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sirocco.runtime.errors import ModelLoadError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file. `start` says where it lies: the byte at which it begins, or its number among the tensors."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class SafetensorsFile:
    """One open file. Raises `ModelLoadError` when its header does not describe it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._file: FileIO = path.open("rb", buffering=0)
        except OSError as error:
            raise ModelLoadError(f"{self.name} cannot be opened: {error.strerror}") from None
        try:
            self.entries = self._read_header(path.stat().st_size)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def read(self, entry: Entry, out: Tensor) -> None:
        """Fill a contiguous CPU tensor of the entry's dtype and size."""
        view = memoryview(out.reshape(-1).view(torch.uint8).numpy().data)
        self._file.seek(entry.start)
        while view:
            try:
                count = self._file.readinto(view)
            except OSError as error:
                raise ModelLoadError(f"{self.name} cannot be read: {error.strerror}") from None
            if not count:
                raise ModelLoadError(f"{self.name} ended while it was being read")
            view = view[count:]

    def map(self, entry: Entry) -> Tensor | None:
        """A private view of the file's pages, or None where the tensor is not aligned for its dtype."""
        offset = entry.start % mmap.ALLOCATIONGRANULARITY
        if entry.start % entry.dtype.itemsize or not entry.num_bytes:
            return None
        # Copy on write, since torch warns of memory that it must not write to.
        pages = mmap.mmap(
            self._file.fileno(), offset + entry.num_bytes, access=mmap.ACCESS_COPY, offset=entry.start - offset
        )
        return torch.frombuffer(pages, dtype=entry.dtype, count=math.prod(entry.shape), offset=offset).view(entry.shape)

    def _read_header(self, file_size: int) -> dict[str, Entry]:
        prefix = self._file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8):
            raise ModelLoadError(f"{self.name} is not a safetensors file, or is truncated")
        try:
            header = json.loads(self._file.read(length))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise ModelLoadError(f"{self.name} has a broken header")
        header.pop("__metadata__", None)
        entries = {name: self._entry(name, fields, 8 + length) for name, fields in header.items()}
        self._check_extents(entries, 8 + length, file_size)
        return entries

    def _entry(self, name: str, fields: object, data_start: int) -> Entry:
        match fields:
            case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(start), int(end)]} if all(
                isinstance(size, int) and size >= 0 for size in shape
            ):
                pass
            case _:
                raise ModelLoadError(f"{self.name} has a broken header: tensor {name!r} is not described")
        if code not in DTYPES:
            raise ModelLoadError(f"{self.name}: tensor {name!r} has the unknown dtype {code!r}")
        if end - start != math.prod(shape) * DTYPES[code].itemsize:
            raise ModelLoadError(f"{self.name}: the size of tensor {name!r} does not match its shape {shape}")
        return Entry(DTYPES[code], tuple(shape), data_start + start, end - start)

    def _check_extents(self, entries: dict[str, Entry], data_start: int, file_size: int) -> None:
        position = data_start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
            if entry.start != position:
                raise ModelLoadError(f"{self.name}: tensor {name!r} overlaps another or leaves a gap")
            position += entry.num_bytes
            if position > file_size:
                raise ModelLoadError(f"{self.name} is truncated: tensor {name!r} ends beyond the file")
