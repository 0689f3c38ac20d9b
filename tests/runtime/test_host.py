"""The choice of threads: measured once, remembered, and left alone where the user has chosen."""

import os
from pathlib import Path

import pytest

from sirocco.kernels.native import build
from sirocco.runtime import host
from sirocco.runtime.host import Threads


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that already holds a library, which nothing loads."""
    path = tmp_path / "kernels.so"
    monkeypatch.setattr(host, "library_path", lambda: path)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host, "_processors", lambda: 4)
    monkeypatch.setattr(host, "_quiet", lambda: True)
    return path


def test_the_fastest_way_is_chosen_and_remembered(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {Threads(4, True): 1.0, Threads(3, True): 0.7}
    tried: list[Threads] = []

    def measure(path: Path, threads: Threads) -> float:
        assert path == kernels
        tried.append(threads)
        return seconds.get(threads, 2.0)

    monkeypatch.setattr(host, "_pass_seconds", measure)
    assert host.chosen_threads() == Threads(3, True)
    assert set(tried) == {Threads(1, False), *(Threads(n, spin) for n in (3, 4) for spin in (False, True))}
    tried.clear()
    assert host.chosen_threads() == Threads(3, True)
    assert not tried


def test_what_is_measured_beside_others_is_not_remembered(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_quiet", lambda: False)
    seconds = [1.0]
    monkeypatch.setattr(host, "_pass_seconds", lambda _, threads: seconds[0] if threads.count == 1 else 2.0)
    assert host.chosen_threads() == Threads(1, False)
    seconds[0] = 9.0
    assert host.chosen_threads().count > 1


def test_what_is_measured_holds_where_it_cannot_be_remembered(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "library_path", lambda: kernels.parent / "no such folder" / kernels.name)
    monkeypatch.setattr(host, "_pass_seconds", lambda _, threads: 1.0 if threads.count == 1 else 2.0)
    assert host.chosen_threads() == Threads(1, False)


def test_a_number_of_threads_that_was_asked_for_bounds_the_choice(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    tried: list[Threads] = []
    monkeypatch.setattr(host, "_pass_seconds", lambda _, threads: tried.append(threads) or 1.0)  # type: ignore[func-returns-value]
    host.chosen_threads()
    assert {threads.count for threads in tried} == {1, 2}


def test_without_kernels_all_processors_sleep_while_they_wait(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "library_path", lambda: None)
    assert host.chosen_threads() == Threads(4, False)


def test_a_measurement_that_fails_is_no_obstacle(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.write_bytes(b"not a library")
    assert host.chosen_threads() == Threads(4, False)


def test_what_the_user_has_set_stays(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "chosen_threads", lambda: pytest.fail("measured all the same"))
    monkeypatch.setattr(host.sys, "modules", {})
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    host.prepare_process()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.skipif(build.library_path() is None, reason="no C++ compiler")
def test_a_pass_takes_time() -> None:
    path = build.library_path()
    assert path is not None
    assert host._pass_seconds(path, Threads(1, False)) > 0


@pytest.mark.parametrize(("quota", "wanted"), [(None, 8), (0.5, 1), (2.0, 2), (2.5, 3), (64.0, 8)])
def test_no_more_threads_than_processors_that_are_granted(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, wanted: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(host, "processor_quota", lambda: quota)
    assert host._processors() == wanted
