"""The weights of a model folder, over one file or many.

Tensors are read rather than mapped, so that what has been packed or converted leaves nothing behind in memory. Only a
table that is looked up row by row may stay in its file.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sirocco.runtime.config import read_json
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.safetensors_file import Entry, SafetensorsFile
from sirocco.runtime.torch_file import TorchFile

WeightFile = SafetensorsFile | TorchFile

# Index, usual name and endings of each format, the preferred one first.
FORMATS = (
    ("model.safetensors.index.json", "model.safetensors", (".safetensors",)),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", (".bin", ".pt", ".pth")),
)
OPENERS: dict[str, Callable[[Path], WeightFile]] = {".safetensors": SafetensorsFile}
NOT_WEIGHTS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")  # what trainers leave beside them


class Checkpoint:
    """The tensors of a model folder by name. A context manager.

    `prefixes` says what to put instead of how names begin, for checkpoints that call the same weights differently.
    """

    def __init__(self, folder: Path, prefixes: Mapping[str, str] | None = None) -> None:
        self._files: list[WeightFile] = []
        self._where: dict[str, tuple[WeightFile, Entry]] = {}
        try:
            for path in _files(folder):
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


def _files(folder: Path) -> list[Path]:
    """The weight files of the first format there is: those its index names, else that of the usual name, else all."""
    for index_name, usual, endings in FORMATS:
        index = read_json(folder, index_name)
        if index is not None:
            return _indexed_files(folder, index_name, index.get("weight_map"), endings)
        if (folder / usual).is_file():
            return [folder / usual]
        found = sorted(path for ending in endings for path in folder.glob(f"*{ending}"))
        if files := [path for path in found if not path.name.startswith(NOT_WEIGHTS)]:
            return files
    others = ", only a .gguf, which is not supported" if any(folder.glob("*.gguf")) else ""
    known = ", ".join(ending for _, _, endings in FORMATS for ending in endings)
    raise ModelLoadError(f"the model folder holds no weights ({known}){others}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


def _indexed_files(folder: Path, index: str, weight_map: object, endings: tuple[str, ...]) -> list[Path]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index}: weight_map must be an object that names files")
    names = set(weight_map.values()) if all(isinstance(name, str) for name in weight_map.values()) else {""}
    for name in names:
        if not name.endswith(endings) or Path(name).name != name:
            raise ModelLoadError(f"{index}: weight_map must name {endings[0]} files of the same folder")
    missing = sorted(name for name in names if not _is_file(folder / name))
    if missing:
        raise ModelLoadError(
            f"{len(missing)} of {len(names)} weight files are missing, first {repr(missing[0][:200])[1:-1]}"
        )
    return [folder / name for name in sorted(names)]
