"""Reading safetensors: headers are checked before a byte of weights is read, tensors are read one at a time.

Tensors are read rather than mapped, so that what has been packed or converted leaves nothing behind in memory. Only a
table that is looked up row by row may stay in its file.
"""

import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sirocco.runtime.config import read_json
from sirocco.runtime.errors import ModelLoadError

INDEX = "model.safetensors.index.json"
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
    """Where a tensor lies: `start` counts from the beginning of the file."""

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
            count = self._file.readinto(view)
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


class Checkpoint:
    """The tensors of a model folder by name, over one file or many. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._files: list[SafetensorsFile] = []
        self._where: dict[str, tuple[SafetensorsFile, Entry]] = {}
        try:
            for path in _files(folder):
                self._add(SafetensorsFile(path))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> Entry:
        return self._where[name][1]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def hide(self, prefixes: tuple[str, ...]) -> None:
        """Forget the tensors whose names begin like one of these."""
        for name in [name for name in self._where if name.startswith(prefixes)]:
            del self._where[name]

    def read(self, name: str, out: Tensor) -> None:
        """Copy a tensor into `out`, a contiguous tensor of its size on any device, converting to its dtype."""
        file, entry = self._where[name]
        if entry.dtype == out.dtype and out.device.type == "cpu":
            file.read(entry, out)
            return
        staged = torch.empty(out.shape, dtype=entry.dtype)
        file.read(entry, staged)
        out.copy_(staged)

    def map(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """A tensor left in its file, so that only what is touched takes memory; None where it would need converting."""
        file, entry = self._where[name]
        return file.map(entry) if entry.dtype == dtype else None

    def _add(self, file: SafetensorsFile) -> None:
        self._files.append(file)
        for name, entry in file.entries.items():
            if name in self._where:
                raise ModelLoadError(f"tensor {name!r} is in both {self._where[name][0].name} and {file.name}")
            self._where[name] = (file, entry)


def _files(folder: Path) -> list[Path]:
    """The weight files: those the index names, else the one of the usual name, else all."""
    index = read_json(folder, INDEX)
    if index is not None:
        return _indexed_files(folder, index.get("weight_map"))
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        others = any(True for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for _ in folder.glob(pattern))
        hint = ", only weights in a format that is not supported" if others else ""
        raise ModelLoadError(f"the model folder holds no .safetensors weights{hint}")
    return files


def _indexed_files(folder: Path, weight_map: object) -> list[Path]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{INDEX}: weight_map must be an object that names files")
    names = set(weight_map.values()) if all(isinstance(name, str) for name in weight_map.values()) else {""}
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelLoadError(f"{INDEX}: weight_map must name .safetensors files of the same folder")
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelLoadError(f"{len(missing)} of {len(names)} weight files are missing, first {missing[0]}")
    return [folder / name for name in sorted(names)]
