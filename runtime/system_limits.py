"""How much memory and how many processors a machine, and the control groups of a container, leave to a process."""

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
    left = [_left(folder) for folder in _own_groups("memory", proc, groups)]
    return min([_meminfo(proc).get("MemAvailable", _physical()), *(some for some in left if some is not None)])


def total_memory(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Bytes that no process can have more of: physical memory, or what its control groups allow, and swap."""
    limits = [most for folder in _own_groups("memory", proc, groups) if (most := _limit(folder)) is not None]
    known = _meminfo(proc)
    return min([known.get("MemTotal", _physical()), *limits]) + known.get("SwapTotal", 0)


def processor_quota(proc: Path = _PROC, groups: Path = _GROUPS) -> float | None:
    """How many processors' time the control groups of this process grant it at most; None where they do not say."""
    quotas = [_quota(folder) for folder in _own_groups("cpu", proc, groups)]
    return min((some for some in quotas if some is not None), default=None)


def _meminfo(proc: Path) -> dict[str, int]:
    """What Linux says of the machine, in bytes by name; empty elsewhere."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest}


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _own_groups(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of the groups of a controller that this process is in, outermost first; not all need exist."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            folder = groups / controller if controllers else groups
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


def _limit(folder: Path) -> int | None:
    """The bytes that a group may use; None for a group without a limit."""
    for limit, _, _ in _FILES:
        try:
            return int((folder / limit).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return None


def _quota(folder: Path) -> float | None:
    """The processors that a group grants; None for a group without a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
            continue
    return None
