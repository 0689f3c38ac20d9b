"""Writing what a comparison found: whoever reads a file while it is replaced sees the old one or the new one."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from sirocco.runtime.errors import RequestError


def to_json(value: msgspec.Struct) -> bytes:
    """Indented, to be read in a diff."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def replace_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name, each in one move. Raises `RequestError` when the folder cannot be written."""
    try:
        for name, content in files.items():
            replace(folder / name, content)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror}") from None


def replace(path: Path, content: bytes) -> None:
    """Write a file in one move. Raises `OSError`."""
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def check_replaceable(path: Path) -> None:
    """Raises `OSError` where `replace` could not even begin; leaves nothing behind."""
    _partial(path).touch()
    _partial(path).unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
