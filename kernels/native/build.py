"""Compiles the C++ kernels for this machine's processor, once: the library is cached by all that it depends on."""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_FLAGS = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fopenmp", "-fPIC", "-shared"),
)
_SECONDS = 120  # for a compiler that never ends


class NoCompilerError(FileNotFoundError):
    """There is no C++ compiler on the path."""


def cache_folder() -> Path:
    """Where libraries are kept: `$SIROCCO_CACHE`, else in the user's cache folder. Raises OSError without either."""
    if folder := os.environ.get("SIROCCO_CACHE"):
        return Path(folder) / "native"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sirocco" / "native"
    except RuntimeError:
        raise OSError("this user has no home folder; SIROCCO_CACHE can name another") from None


@functools.cache
def library_path() -> Path | None:
    """The compiled kernels' file; None where `SIROCCO_NATIVE=0`, without a compiler, or where that fails (logged)."""
    if os.environ.get("SIROCCO_NATIVE") == "0":
        return None
    try:
        return compiled()
    except NoCompilerError:
        logger.info("no C++ compiler found: the CPU runs torch's operators, which are slower")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning("the CPU kernels could not be compiled, torch's operators run instead: %s", said.strip()[-500:])
    return None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None as for `library_path`.

    Call it after torch is imported: the kernels share the thread pool of torch's OpenMP library.
    """
    path = library_path()
    try:
        return None if path is None else ctypes.CDLL(str(path))
    except OSError as error:  # it was cut short, or made where the system's libraries are newer
        logger.warning("the CPU kernels could not be loaded, torch's operators run until the next start: %s", error)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()
        return None


def compiled() -> Path:
    """The library's file, compiled if it is not in the cache.

    Raises `NoCompilerError` without a compiler, subprocess.SubprocessError if it fails, OSError where nothing can be
    written.
    """
    compiler = _compiler()
    command = [compiler, *_FLAGS, _target_flag()]
    sources = sorted(_SOURCES.glob("*.cpp"))
    content = [path.read_bytes() for path in (*sources, *sorted(_SOURCES.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*content, " ".join(command).encode(), _file(compiler), _machine()]))
    folder = cache_folder()
    path = folder / f"kernels-{key.hexdigest()[:20]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("compiling the CPU kernels, once for this machine")
    # Another process may be at it too: each writes a file of its own, and the last rename wins.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / path.name
        arguments = [*command, *map(str, sources), "-o", str(part)]
        subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=True)
        part.replace(path)
    return path


def machine_key() -> str:
    """A short name for this machine's kind of processor."""
    return hashlib.sha256(_machine()).hexdigest()[:12]


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise NoCompilerError("no C++ compiler")


def _file(path: str) -> bytes:
    """Which file a path leads to at the moment: another version of a compiler may come under the same name."""
    real = os.path.realpath(path)
    found = os.stat(real)
    return f"{real} {found.st_size} {found.st_mtime_ns}".encode()


def _target_flag() -> str:
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"


def _machine() -> bytes:
    """What `native` stands for: a home folder may be shared by machines of different kinds."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return "\n".join(sorted(kept)).encode()
    return f"{platform.machine()} {platform.processor()}".encode()
