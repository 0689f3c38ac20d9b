"""Writing what a comparison found: whoever reads a file while it is replaced sees the old one or the new one."""

import os
from collections.abc import Mapping
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
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)
