"""How every comparison measures: in quiet, again while others disturb, and with what fails noted beside the figures."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from sirocco.bench import report
from sirocco.bench.peers import contention
from sirocco.bench.peers.child import DRIVERS, AbsentError, CallError, Child, ChildDiedError
from sirocco.bench.peers.drivers.host import Reply, Spec
from sirocco.bench.peers.results import Entry, Rates, Run, Sample

MACHINE = DRIVERS / "machine.py"
CHILD_ERRORS = (AbsentError, CallError, ChildDiedError)
_KEPT_TOKENS = 32

Item = TypeVar("Item")


class Setting(NamedTuple):
    """When and where a comparison runs, in the order of the fields of `Results`."""

    started: str
    machine: str
    platform: str


def read_setting() -> Setting:
    """The setting of a comparison that begins now."""
    return Setting(
        datetime.now(UTC).isoformat(timespec="seconds"),
        report.cpu_name(),
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )


@dataclass(frozen=True, slots=True)
class Measurer:
    """Measures what it is handed, once others leave the machine alone or `max_wait_s` are over; `say` takes a line for
    each step.
    """

    max_wait_s: float
    say: Callable[[str], None]

    def rates(self, machine: Child, spec: Spec, number: int) -> Rates | None:
        """What the machine can do in this round, None where its driver fails."""
        contention.wait_until_quiet(self.max_wait_s)
        try:
            with machine as child:
                child.call("load", spec)
                window = contention.Window()
                rates, cpu_s = child.call("rates")
                usage = window.usage(cpu_s)
        except CHILD_ERRORS as error:
            self.say(f"round {number + 1}: the machine's rates are unknown: {error}")
            return None
        return Rates(number, rates["read_bytes_s"], rates["matmul_flop_s"], usage.others_cores)

    def run(self, entry: Entry, number: int, process: Child, measure: Callable[[Child, Run], None]) -> Run:
        """One engine in one round: `measure` fills the run, and what ends the process is its error."""
        run = Run(entry.name, entry.variant, number)
        started = time.monotonic()
        try:
            with process as child:
                measure(child, run)
        except CHILD_ERRORS as error:
            run.errors["run"] = str(error)
        run.wall_s = round(time.monotonic() - started, 1)
        shown = ", ".join(f"{name} {sample.value:.4g}" for name, sample in run.metrics.items())
        failed = "".join(f"; {test} failed: {message}" for test, message in run.errors.items())
        self.say(f"round {number + 1} {entry.label}: {shown}{failed} ({run.wall_s:.0f} s)")
        return run

    def test(
        self,
        run: Run,
        name: str,
        max_tries: int,
        ask: Callable[[], tuple[Reply, float]],
        figures: Callable[[Reply], dict[str, float]],
    ) -> None:
        """Ask until nobody disturbs or the tries are used up; the figures of the least disturbed try count.

        `ask` gives the reply and the CPU seconds that it took. Raises what it raises.
        """
        best: tuple[contention.Usage, Reply, int] | None = None
        waited_s = 0.0
        for number in range(1, max_tries + 1):
            waited_s += contention.wait_until_quiet(self.max_wait_s)
            window = contention.Window()
            reply, cpu_s = ask()
            usage = window.usage(cpu_s)
            if best is None or (usage.others_cores or 0.0) < (best[0].others_cores or 0.0):
                best = usage, reply, number
            if not usage.disturbed:
                break
        assert best is not None
        usage, reply, number = best
        for metric, value in figures(reply).items():
            run.metrics[metric] = Sample(value, *usage, round(waited_s, 1), number)
        if name == "decode1":
            run.tokens = reply["ids"][:_KEPT_TOKENS]


@contextmanager
def noted(run: Run, test: str) -> Iterator[None]:
    """What the engine refuses is that test's error, and the next test can be asked."""
    try:
        yield
    except CallError as error:
        run.errors[test] = str(error)


def note_peak_anon(child: Child, run: Run) -> None:
    """The most anonymous memory that the engine held so far, where the system tells."""
    if child.peak_anon_mib is not None:
        run.metrics["peak_anon_mib"] = untimed(child.peak_anon_mib)


def untimed(value: float) -> Sample:
    """A value that others cannot disturb."""
    return Sample(value, None, None, 0.0, 1)


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """Each round begins with another one, so that none always follows the same."""
    at = number % max(len(items), 1)
    return [*items[at:], *items[:at]]
