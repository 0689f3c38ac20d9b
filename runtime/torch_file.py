"""One file of torch's own format (`.bin`, `.pt`, `.pth`): tensors by name and nothing else.

Such a file is a pickle, which may ask for any function to be called. torch's restricted unpickler knows only what
rebuilds tensors; what asks for more is refused.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.safetensors_file import DTYPES, Entry

# What the reader raises for files that are cut off or were never written by torch.
_BROKEN = (
    *(OSError, RuntimeError, EOFError, zipfile.BadZipFile),
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError),
)
_DTYPES = frozenset(DTYPES.values())


class TorchFile:
    """One open file, mapped where its format allows that. Raises `ModelLoadError` when it holds more than tensors."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        tensors = _tensors(self.name, _load(path))
        self._tensors = list(tensors.values())
        self.entries = {
            name: Entry(tensor.dtype, tuple(tensor.shape), number, tensor.numel() * tensor.itemsize)
            for number, (name, tensor) in enumerate(tensors.items())
        }

    def close(self) -> None:
        self._tensors.clear()

    def read(self, entry: Entry, out: Tensor) -> None:
        """Fill a contiguous CPU tensor of the entry's dtype and size."""
        out.view(entry.shape).copy_(self._tensors[entry.start])

    def map(self, entry: Entry) -> Tensor | None:
        """None: one tensor that stays would keep the pages of the whole file."""
        return None


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)  # older files are bare pickles, which cannot be mapped
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be opened: {error.strerror}") from None
    try:
        if is_zip:
            _check_stored(path)
        return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except pickle.UnpicklingError:
        raise ModelLoadError(_refusal(path)) from None
    except _BROKEN:
        raise ModelLoadError(f"{path.name} is not a file of tensors, or is truncated") from None


def _check_stored(path: Path) -> None:
    """torch compresses nothing; what is compressed could unfold to any size."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ModelLoadError(f"{path.name} is compressed, which files of tensors are not")


def _refusal(path: Path) -> str:
    """What the file asks for beyond tensors, where that can be told."""
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, *_BROKEN):
        asked = []
    if not asked:
        return f"{path.name} is not a file of plain tensors, or is broken"
    return f"{path.name} asks for {min(asked)[:100]!r}, but only files of plain tensors are loaded"


def _tensors(file: str, loaded: object) -> dict[str, Tensor]:
    """The tensors by name, each checked to be an ordinary one in memory that it fits."""
    if not isinstance(loaded, Mapping):
        raise ModelLoadError(f"{file} does not hold tensors by name")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelLoadError(f"{file} does not hold tensors by name: {str(name)[:100]!r} is none")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ModelLoadError(f"{file}: tensor {name!r} is not a plain dense tensor")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ModelLoadError(f"{file}: tensor {name!r} claims more elements than are stored")
        if tensor.dtype not in _DTYPES:
            raise ModelLoadError(f"{file}: tensor {name!r} has the dtype {tensor.dtype}, which is not supported")
    return {name: tensor.detach() for name, tensor in loaded.items()}
