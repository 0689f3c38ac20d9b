"""How much memory is left on this machine, and in the control groups that a container puts a process in."""

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_FILES = (  # limit, usage, and what of the usage is files in memory that can be dropped: cgroup v2, v1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Bytes that this process can still take: `MemAvailable` where Linux says, else all of physical memory, and no more
    than the limits of its control groups leave.
    """
    left = [_left(folder) for folder in _own_groups(proc, groups)]
    return min([_of_machine(proc), *(some for some in left if some is not None)])


def _of_machine(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _own_groups(proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, outermost first; not all need exist."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            folder = groups / "memory" if controllers else groups
            yield folder
            for name in Path(path).parts[1:]:
                folder /= name
                yield folder


def _left(folder: Path) -> int | None:
    """Bytes that a group's limit leaves; None for a group without a limit."""
    for limit, usage, dropped in _FILES:
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(most - used + int(stat.get(dropped, 0)), 0)
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return None
