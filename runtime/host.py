"""How this process treats the machine: to be called before torch is imported for the first time."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 32 << 20  # the most that glibc accepts
_TRIM_BYTES = 1 << 30


def prepare_process() -> None:
    """Set what a process that computes needs, where the user has not set it.

    Threads of torch's pool sleep while they wait: spinning ones stall each other when anything else runs beside them,
    though they decode faster on an idle one. Freed memory stays in the process: a step's temporaries of a megabyte and
    more would otherwise be unmapped and faulted in again by every operator.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
