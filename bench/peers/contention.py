"""How much of the machine others use while we measure, and waiting until they use little (Linux; elsewhere unknown)."""

import os
import time
from typing import NamedTuple

BUSY_LIMIT = 0.3  # cores; a measurement starts below this
DISTURBED_LIMIT = 0.25  # cores; a measurement above this is repeated, and flagged when that did not help
_LOOK_S = 0.5
_PAUSE_S = 1.0


class Usage(NamedTuple):
    """Cores that others used, and that the host of a virtual machine took, on average over a time; None: unknown."""

    others_cores: float | None
    steal_cores: float | None

    @property
    def disturbed(self) -> bool:
        return self.others_cores is not None and self.others_cores > DISTURBED_LIMIT


class Times(NamedTuple):
    """Seconds since boot that all cores together worked and were kept from working, and the clock."""

    busy: float
    steal: float
    clock: float


def read_times() -> Times | None:
    """The counters of `/proc/stat`, None where there are none."""
    try:
        with open("/proc/stat") as lines:
            fields = [int(field) for field in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    hertz = os.sysconf("SC_CLK_TCK")
    return Times((user + nice + system + irq + softirq) / hertz, steal / hertz, time.monotonic())


class Window:
    """Usage from its making on."""

    def __init__(self) -> None:
        self._begin = read_times()
        self._own = time.process_time()

    def usage(self, own_cpu_s: float = 0.0) -> Usage:
        """What others used so far, when what is measured used `own_cpu_s` and this process its own."""
        begin, end = self._begin, read_times()
        if begin is None or end is None:
            return Usage(None, None)
        seconds = max(end.clock - begin.clock, 1e-3)
        # The counters advance by ticks, so that much on each core cannot be told from nothing.
        resolution = (os.cpu_count() or 1) / os.sysconf("SC_CLK_TCK")
        others = end.busy - begin.busy - own_cpu_s - (time.process_time() - self._own) - resolution
        return Usage(round(max(others, 0.0) / seconds, 3), round((end.steal - begin.steal) / seconds, 3))


def wait_until_quiet(max_wait_s: float) -> float:
    """Return once others use less than `BUSY_LIMIT` or the time is over; the seconds that it took."""
    begin = time.monotonic()
    while True:
        window = Window()
        time.sleep(_LOOK_S)
        others = window.usage().others_cores
        waited = time.monotonic() - begin
        if others is None or others <= BUSY_LIMIT or waited >= max_wait_s:
            return round(waited, 1)
        time.sleep(_PAUSE_S)
