"""Results as a table for people and as JSON for programs, and the facts that every result carries."""

import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from sirocco.bench.peers import files
from sirocco.runtime.errors import RequestError

_FILE_WIDTH = 160  # columns, where there is no terminal to ask

Row = Mapping[str, Any]
Columns = Sequence[tuple[str, str]]  # heading, and the key or key.subkey of a row


def publish(rows: Sequence[Row], columns: Columns, json_file: str | None) -> None:
    """Write the JSON where asked, and show a table, on stderr when the JSON goes to stdout.

    A file comes first, so that it is there even where nobody can be shown the table. Raises `RequestError` when one of
    them cannot be written, BrokenPipeError when nobody reads it.
    """
    to_stdout = json_file == "-"
    console = Console(stderr=to_stdout)
    if not console.is_terminal:
        console = Console(stderr=to_stdout, width=_FILE_WIDTH)
    text = _as_json(rows)
    if json_file is not None and not to_stdout:
        _write_file(json_file, text)
    with _refusals_told("the output"):
        console.print(sheet(rows[0], columns) if len(rows) == 1 else table(rows, columns))
        if to_stdout:
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()


def keep(rows: Sequence[Row], json_file: str | None) -> None:
    """Have what there is so far outlive an early end, in a file of its own. Raises `RequestError` as `publish` does."""
    if json_file is not None and json_file != "-" and _is_replaced(Path(json_file)):
        _write_file(json_file, _as_json(rows))


def _as_json(rows: Sequence[Row]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(list(rows)), indent=2) + b"\n"


def _write_file(name: str, text: bytes) -> None:
    path = Path(name)
    with _refusals_told(name):
        if _is_replaced(path):
            files.replace(_behind_links(path), text)
        else:
            with path.open("ab") as file:
                file.write(text)


def table(rows: Sequence[Row], columns: Columns) -> Table:
    """One line a row; what was not measured is a dash."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for heading, _ in columns:
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(*(_cell(_look_up(row, key)) for _, key in columns))
    return shown


def sheet(row: Row, columns: Columns) -> Table:
    """One line a figure, for a result that stands alone."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column()
    shown.add_column(justify="right")
    for heading, key in columns:
        shown.add_row(heading, _cell(_look_up(row, key)))
    return shown


def check_writable(json_file: str | None) -> None:
    """Raises `RequestError` now rather than after the measuring when the file cannot be written; makes no file."""
    if json_file is None or json_file == "-":
        return
    path = Path(json_file)
    with _refusals_told(json_file):
        if path.exists() and not path.is_fifo():  # whose reader would take closing it for the end
            path.open("ab").close()
        if _is_replaced(path):
            files.check_replaceable(_behind_links(path))


@contextmanager
def _refusals_told(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RequestError(f"{name} cannot be written: {error.strerror}") from None


def _is_replaced(path: Path) -> bool:
    """A file is, in one move, so that older results outlive a full disk; a pipe or a device is written to.

    So is what a descriptor has open, such as /dev/stdout: others write to it too.
    """
    while path.is_symlink():
        if path.absolute().is_relative_to("/dev") or path.absolute().is_relative_to("/proc"):
            return False
        path = path.parent / path.readlink()
    return path.is_file() or not path.exists()


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def peak_rss_mib() -> float:
    """The most memory this process has held at once, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the short name stands
    return f"{name} ({cores} cores)"


def _look_up(row: Row, key: str) -> Any:
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
    return str(value)
