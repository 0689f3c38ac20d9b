"""What is available on a machine of files: outside of containers, and inside where control groups have limits."""

from pathlib import Path

import pytest

from sirocco.runtime.system_limits import available_memory, processor_quota, total_memory

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def available(root: Path) -> int:
    return available_memory(root / "proc", root / "groups")


MEMINFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {40 * GIB // 1024} kB"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 40),
        ({"proc/self/cgroup": "0::/"}, 40),
        ({"proc/self/cgroup": "0::/", "groups/memory.max": "max", "groups/memory.current": str(GIB)}, 40),
        (  # a container with cgroup v2 sees its own group as the root
            {
                "proc/self/cgroup": "0::/",
                "groups/memory.max": str(8 * GIB),
                "groups/memory.current": str(5 * GIB),
                "groups/memory.stat": f"anon {3 * GIB}\ninactive_file {2 * GIB}",
            },
            5,
        ),
        (  # a service: the group around it has the limit
            {
                "proc/self/cgroup": "0::/a/b",
                "groups/a/memory.max": str(8 * GIB),
                "groups/a/memory.current": str(2 * GIB),
                "groups/a/memory.stat": "inactive_file 0",
                "groups/a/b/memory.max": "max",
                "groups/a/b/memory.current": str(GIB),
            },
            6,
        ),
        (  # version 1, where the path is that of the host
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/",
                "groups/memory/memory.limit_in_bytes": str(4 * GIB),
                "groups/memory/memory.usage_in_bytes": str(GIB),
                "groups/memory/memory.stat": "cache 9\ntotal_inactive_file 0",
            },
            3,
        ),
        (  # version 1 without a limit
            {
                "proc/self/cgroup": "4:memory:/",
                "groups/memory/memory.limit_in_bytes": str(2**63 - 4096),
                "groups/memory/memory.usage_in_bytes": str(GIB),
                "groups/memory/memory.stat": "total_inactive_file 0",
            },
            40,
        ),
        (  # more used than is allowed
            {
                "proc/self/cgroup": "0::/",
                "groups/memory.max": str(GIB),
                "groups/memory.current": str(2 * GIB),
                "groups/memory.stat": "inactive_file 0",
            },
            0,
        ),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, files: dict[str, str], wanted: int) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO} | files)
    assert available(tmp_path) == wanted * GIB


def test_physical_memory_where_nothing_says_more(tmp_path: Path) -> None:
    assert available(tmp_path) > 0


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/", "groups/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "groups/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/a/b", "groups/a/cpu.max": "400000 100000", "groups/a/b/cpu.max": "max 100000"}, 4.0),
        (  # version 1
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/1\n0::/",
                "groups/cpu/cpu.cfs_quota_us": "-1",
                "groups/cpu/cpu.cfs_period_us": "100000",
                "groups/cpu/docker/1/cpu.cfs_quota_us": "50000",
                "groups/cpu/docker/1/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/", "groups/cpu.max": "100000 0"}, None),
        ({"proc/self/cgroup": "0::/", "groups/cpu.max": "nonsense"}, None),
    ],
    ids=["nothing", "no limit", "container", "service", "version 1", "no period", "nonsense"],
)
def test_the_processors_that_control_groups_grant(files: dict[str, str], wanted: float | None, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert processor_quota(tmp_path / "proc", tmp_path / "groups") == wanted


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 64),
        ({"proc/meminfo": f"{MEMINFO}\nSwapTotal: {2 * GIB // 1024} kB"}, 66),
        ({"proc/self/cgroup": "0::/a", "groups/a/memory.max": str(8 * GIB), "groups/memory.max": "max"}, 8),
        ({"proc/self/cgroup": "4:memory:/", "groups/memory/memory.limit_in_bytes": "9223372036854771712"}, 64),
    ],
    ids=["machine", "swap", "container", "version 1"],
)
def test_all_the_memory_there_is(files: dict[str, str], wanted: int, tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO} | files)
    assert total_memory(tmp_path / "proc", tmp_path / "groups") == wanted * GIB
