"""Which files of a model folder hold its weights."""

from collections.abc import Iterable
from pathlib import Path

from sirocco.runtime.config import read_json
from sirocco.runtime.errors import ModelLoadError

# Index, usual name and endings of each format, the preferred one first.
FORMATS = (
    ("model.safetensors.index.json", "model.safetensors", (".safetensors",)),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", (".bin", ".pt", ".pth")),
)
# What trainers and other programs leave beside them.
NOT_WEIGHTS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state", "adapter_", "consolidated")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of the first format that has the one of the usual name, else those its index names; else all.

    In this order as in transformers: an index outlives its files where a model was saved anew as a single one.
    """
    for index_name, usual, endings in FORMATS:
        if (folder / usual).is_file():
            return [folder / usual]
        index = read_json(folder, index_name)
        if index is not None:
            return _indexed_files(folder, index_name, index.get("weight_map"), endings)
    for _, _, endings in FORMATS:
        if files := unnamed_files(folder, endings):
            return files
    others = ", only a .gguf, which is not supported" if any(folder.glob("*.gguf")) else ""
    known = ", ".join(ending for _, _, endings in FORMATS for ending in endings)
    raise ModelLoadError(f"the model folder holds no weights ({known}){others}")


def unnamed_files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """What looks like weights by its ending alone."""
    found = sorted(path for ending in endings for path in folder.glob(f"*{ending}"))
    return [path for path in found if not path.name.startswith(NOT_WEIGHTS)]


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
