"""The weights of a model folder, over one file or many.

Tensors are read rather than mapped, so that what has been packed or converted leaves nothing behind in memory. Only a
table that is looked up row by row may stay in its file.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.safetensors_file import Entry, SafetensorsFile
from sirocco.runtime.torch_file import TorchFile
from sirocco.runtime.weight_files import weight_files

WeightFile = SafetensorsFile | TorchFile

OPENERS: dict[str, Callable[[Path], WeightFile]] = {".safetensors": SafetensorsFile}


class Checkpoint:
    """The tensors of a model folder by name. A context manager.

    `prefixes` says what to put instead of how names begin, for checkpoints that call the same weights differently.
    """

    def __init__(self, folder: Path, prefixes: Mapping[str, str] | None = None) -> None:
        self._files: list[WeightFile] = []
        self._where: dict[str, tuple[WeightFile, Entry]] = {}
        try:
            for path in weight_files(folder):
                self._add(OPENERS.get(path.suffix, TorchFile)(path), prefixes or {})
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

    def rename(self, endings: Mapping[str, str]) -> None:
        """Put other endings in place of some of the tensors' names, unless there is such a name already."""
        for old, new in endings.items():
            for name in [name for name in self._where if name.endswith(old)]:
                self._where.setdefault(name.removesuffix(old) + new, self._where.pop(name))

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same."""
        one, other = self[first], self[second]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return torch.equal(self._whole(first, one), self._whole(second, other))

    def _whole(self, name: str, entry: Entry) -> Tensor:
        mapped = self.map(name, entry.dtype)
        if mapped is not None:
            return mapped
        self.read(name, out := torch.empty(entry.shape, dtype=entry.dtype))
        return out

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

    def _add(self, file: WeightFile, prefixes: Mapping[str, str]) -> None:
        self._files.append(file)
        for stored, entry in file.entries.items():
            found = next((prefix for prefix in prefixes if stored.startswith(prefix)), None)
            name = stored if found is None else prefixes[found] + stored.removeprefix(found)
            if name in self._where:
                raise ModelLoadError(f"tensor {stored!r} is in both {self._where[name][0].name} and {file.name}")
            self._where[name] = (file, entry)
