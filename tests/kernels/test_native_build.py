"""Compiling the C++ kernels: when it is done again, and what happens where it cannot be."""

import ctypes
import logging
import shutil
import sys
from pathlib import Path

import pytest

from sirocco.kernels.native import build


def test_where_nothing_compiles_torch_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SIROCCO_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with caplog.at_level(logging.WARNING):
        assert build.library_path.__wrapped__() is None
    assert "could not be compiled" in caplog.text
    monkeypatch.setattr(build, "_compiler", lambda: (_ for _ in ()).throw(FileNotFoundError))
    assert build.library_path.__wrapped__() is None
    monkeypatch.setenv("SIROCCO_NATIVE", "0")
    assert build.library_path.__wrapped__() is None


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails, rather than being passed over, where there is a compiler that refuses the sources."""
    monkeypatch.setenv("SIROCCO_CACHE", str(tmp_path))
    first = build.compiled()
    assert ctypes.CDLL(str(first))
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert build.compiled() == first


def test_another_compiler_under_the_same_name_compiles_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("version 9")
    compiler.chmod(0o755)
    monkeypatch.setenv("SIROCCO_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build.subprocess, "run", lambda command, **_: Path(command[-1]).write_text("a library"))
    first = build.compiled()
    assert build.compiled() == first
    compiler.write_text("version 10")
    assert build.compiled() != first


def test_a_library_that_does_not_load_is_compiled_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cut = tmp_path / "kernels-0.so"
    cut.write_bytes(b"\x7fELF")
    monkeypatch.setattr(build, "library_path", lambda: cut)
    assert build.library.__wrapped__() is None
    assert "could not be loaded" in caplog.text and not cut.exists()


def test_without_a_home_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is in no list."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SIROCCO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build, "_compiler", lambda: sys.executable)
    monkeypatch.setattr(build.Path, "home", home)
    assert build.library_path.__wrapped__() is None
