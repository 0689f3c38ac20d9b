"""How this process treats the machine: to be called before torch is imported for the first time."""

import ctypes
import json
import logging
import math
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sirocco.kernels.native.build import library_path, machine_key
from sirocco.runtime.system_limits import processor_quota

logger = logging.getLogger("sirocco.engine")

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 32 << 20  # the most that glibc accepts
_TRIM_BYTES = 1 << 30
_MADV_HUGEPAGE = 14
_HUGE = 2 << 20


@dataclass(frozen=True, slots=True)
class Threads:
    """How torch's pool computes: how many threads, and whether they spin a little before they sleep."""

    count: int
    spin: bool

    @property
    def environment(self) -> dict[str, str]:
        """What makes OpenMP do so. Without it threads spin for milliseconds, and stall whatever runs beside them."""
        waiting = {"GOMP_SPINCOUNT": "5000"} if self.spin else {"OMP_WAIT_POLICY": "PASSIVE"}
        return {"OMP_NUM_THREADS": str(self.count), **waiting}


# Reads 64 MiB of weights by products of one row, as a step of decoding does, and prints the mean seconds of a pass:
# the mean, for a way of waiting that stalls now and then is as slow as its stalls.
_MEASURE = """
import ctypes, sys, time
path, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
lib = ctypes.CDLL(path)
P, L, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
lib.sirocco_linear.argtypes = P, L, L, L, P, L, P, P, L, I, I
K, N, LAYERS = 1024, 4096, 8
weights, x, y = (ctypes.create_string_buffer(size) for size in (2 * K * N * LAYERS, 2 * K, 2 * N))
ctypes.memset(weights, 1, len(weights))
base, started, passes = ctypes.addressof(weights), 0.0, -2
while passes < 3 or time.perf_counter() - started < seconds:
    if passes == 0:
        started = time.perf_counter()
    for layer in range(LAYERS):
        lib.sirocco_linear(x, K, 1, K, base + 2 * K * N * layer, N, None, y, N, 0, threads)
    passes += 1
print((time.perf_counter() - started) / passes)
"""
_SECONDS = 0.12
_ROUNDS = 2  # in turns, so that a moment of noise does not decide


def prepare_process() -> None:
    """Set what a process that computes needs, where the user has not set it.

    Freed memory stays in the process: a step's temporaries of a megabyte and more would otherwise be unmapped and
    faulted in again by every operator. The number of threads and how they wait come from `chosen_threads`.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return  # too late, or the user's own choice
    for name, value in chosen_threads().environment.items():
        os.environ.setdefault(name, value)


def release_memory() -> None:
    """Give freed memory back to the system, which `prepare_process` has keep it; for after much of it was used once."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc
            libc.malloc_trim(0)


def use_huge_pages(address: int, nbytes: int) -> None:
    """Ask that memory which has not been touched yet comes in pages of 2 MiB; a wish, on Linux alone."""
    first, end = -(-address // _HUGE) * _HUGE, (address + nbytes) // _HUGE * _HUGE
    if sys.platform == "linux" and first < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_HUGEPAGE)


def chosen_threads() -> Threads:
    """The fastest of a few ways to compute, measured once on this machine in about a second and remembered.

    Without compiled kernels: every processor there is, sleeping while they wait, which never stalls.
    """
    most = _asked_threads() or _processors()
    plain = Threads(most, spin=False)
    path = library_path()
    if path is None:
        return plain
    known = path.with_name(f"threads-{machine_key()}-{most}.json")
    try:
        count, spin = json.loads(known.read_text())
        return Threads(int(count), bool(spin))
    except (OSError, ValueError, TypeError):
        pass
    try:
        found = measured_threads(path, most)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.info("threads were not measured: %s", error)
        return plain
    if _quiet():  # else it holds for now, and the next start measures again; as it does where nothing can be written
        with suppress(OSError):
            known.write_text(json.dumps([found.count, found.spin]))
    return found


def measured_threads(path: Path, most: int) -> Threads:
    """The best of one thread, all but one and all, sleeping or spinning a little while they wait.

    Raises subprocess.SubprocessError or OSError if a measurement cannot run.
    """
    counts = sorted({1, max(1, most - 1), most})
    candidates = [Threads(count, spin) for count in counts for spin in ((False, True) if count > 1 else (False,))]
    seconds = dict.fromkeys(candidates, 0.0)
    for _ in range(_ROUNDS if len(candidates) > 1 else 0):
        for candidate in candidates:
            seconds[candidate] += _pass_seconds(path, candidate)
    best = min(candidates, key=lambda candidate: seconds[candidate])
    logger.info("computing on %d threads, which %s while they wait", best.count, "spin" if best.spin else "sleep")
    return best


def _pass_seconds(path: Path, threads: Threads) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-I", "-S", "-c", _MEASURE, str(path), str(threads.count), str(_SECONDS)]
    done = subprocess.run(
        command, env=environment | threads.environment, capture_output=True, text=True, timeout=30, check=True
    )
    return float(done.stdout)


def _asked_threads() -> int:
    """What `OMP_NUM_THREADS` says, 0 if nothing that is a number."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


def _quiet() -> bool:
    """Whether the machine has had little else to do."""
    return not hasattr(os, "getloadavg") or os.getloadavg()[0] < 0.5 * _processors()


def _processors() -> int:
    """The processors that this process may run on, and has time of: threads beyond a quota would stop all of them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = processor_quota()
    return count if quota is None else min(count, math.ceil(quota))
