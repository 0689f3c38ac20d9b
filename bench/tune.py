"""`sirocco bench tune`: the configurations of kernels that are fastest on the device at hand, written to their files.

For each kernel and bucket of sizes all candidates are timed as captured graphs; the best replaces what is configured
where it is faster by more than noise. Then, where flash-attn is installed, from how many queries on it is faster than
our prefill. What was measured is in use at once, so that later measurements build on it.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from sirocco.bench import report, tune_flash
from sirocco.bench.kernel_cases import Setting
from sirocco.bench.kernels import device_name, timed
from sirocco.bench.tune_cases import CASES, FAMILIES, TuneCase
from sirocco.kernels import flash
from sirocco.kernels.triton import common, tune
from sirocco.kernels.triton.common import Options
from sirocco.runtime.errors import RequestError

COLUMNS = (
    ("kernel", "kernel"),
    ("bucket", "bucket"),
    ("options", "options"),
    ("us", "us"),
    ("us before", "us_before"),
    ("outcome", "outcome"),
)
OPERATORS = (*FAMILIES, tune_flash.NAME)
NOISE = 0.02  # of a time: what is not faster by more is not chosen
SECONDS = 0.02  # of a graph's replay, of which each candidate has ten
MOST_THREADS = 1024  # of a program

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TuneBench:
    """What to tune and where to write it. `small` tries two candidates each at tiny sizes, on the CPU."""

    operators: Sequence[str] = OPERATORS  # families of configurations, and flash-attn
    out: Path | None = None  # a folder, in place of the files that the package uses
    seconds: float | None = None  # for everything: what is not reached stays as it is
    small: bool = False


def measure(
    bench: TuneBench,
    say: Callable[[Row], None] = lambda row: None,
    measured: tune.Measure | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """One row a kernel and bucket, then one a head dim of flash-attn; a kernel is written as soon as it is done.

    `say` is told each row when it is there; `measured` returns a call's milliseconds. Raises `RequestError` for an
    unknown operator, a folder that cannot be written, a small trial without a folder, and where there is no GPU.
    """
    _check(bench)
    device = torch.device("cpu" if bench.small else "cuda")
    until = None if bench.seconds is None else clock() + bench.seconds
    trials = _Trials(
        device=device,
        small=bench.small,
        measure=measured or (lambda call: 1000 * timed(call, device, 0.0 if bench.small else SECONDS)),
        expired=lambda: until is not None and clock() >= until,
    )
    facts = {"device": device_name(device), "versions": report.versions("sirocco", "torch", "triton", "flash-attn")}
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row | facts)
        say(row)

    with tune.kept_in(bench.out), _named(bench.small), torch.inference_mode():
        for case in CASES:
            if case.family in bench.operators:
                trials.tune(case, add)
        if tune_flash.NAME in bench.operators:
            table = flash.TABLE if bench.out is None else bench.out / flash.TABLE.name
            tune_flash.measure(device, bench.small, trials.measure, trials.expired, table, add)
    return rows


def _check(bench: TuneBench) -> None:
    for name in bench.operators:
        if name not in OPERATORS:
            raise RequestError(f"unknown operator {name!r}: choose {', '.join(OPERATORS)}")
    if bench.small and bench.out is None:
        raise RequestError("--small needs --out: what it finds is no good for a device")
    if not bench.small and not torch.cuda.is_available():
        raise RequestError("tuning needs a CUDA or ROCm device; --small --out DIR tries it without one")
    folder = bench.out or common.CONFIGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise RequestError(f"{folder} cannot be written: --out DIR takes another folder")


def _named(small: bool) -> AbstractContextManager[None]:
    """The device under whose name results are kept."""
    return common.configured_for("interpreter", "interpreter") if small else nullcontext()


@dataclass(frozen=True, slots=True)
class _Trials:
    """How candidates are timed."""

    device: torch.device
    small: bool
    measure: tune.Measure
    expired: Callable[[], bool]

    def tune(self, case: TuneCase, add: Callable[[Row], None]) -> None:
        """Time the candidates of all buckets, and keep the best of each."""
        rows: list[Row] = []
        best: list[tune.Bucket] = []
        for limit, before in tune.buckets(case.family, case.kernel):
            bucket = "the rest" if limit is None else f"to {limit}"
            rows.append(
                {"kernel": f"{case.family}.{case.kernel}", "bucket": bucket, **self._bucket(case, limit, before)}
            )
            best.append((limit, rows[-1]["options"]))
            add(rows[-1])
        if any("us" in row for row in rows):
            tune.keep(case.family, case.kernel, best)

    def _bucket(self, case: TuneCase, limit: int | None, before: Options) -> Row:
        if self.expired():
            return {"options": before, "outcome": "no time left"}
        torch.manual_seed(0)
        sizes = case.sizes(limit)
        try:
            return self._best(case, sizes, before)
        except torch.OutOfMemoryError:
            return {"options": before, "outcome": "out of memory"}
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the next shapes are others

    def _best(self, case: TuneCase, sizes: Sequence[int], before: Options) -> Row:
        name = case.family, case.kernel
        call = _together([case.make(size, Setting(self.device, case.dtype, self.small)) for size in sizes])
        also = [case.make(max(sizes), Setting(self.device, dtype, small=True)) for dtype in case.also]
        took = tune.time_of(*name, call, before, self.measure)
        candidates = takewhile(lambda _: not self.expired(), self._candidates(case, sizes, before))
        try:
            options, best = tune.best_options(*name, call, candidates, self.measure, also)
        except tune.NothingFits:
            options, best = before, None
        if took is None and best is None:
            return {"options": before, "outcome": "nothing fits"}
        faster = best is not None and (took is None or best < (1 - NOISE) * took)
        return {
            "options": options if faster else before,
            "us": _us(best if faster else took),
            "us_before": _us(took),
            "outcome": "faster" if faster else "as before",
        }

    def _candidates(self, case: TuneCase, sizes: Sequence[int], before: Options) -> list[Options]:
        threads = 64 if torch.version.hip else 32  # of a warp
        merged = [before | options for options in case.candidates(max(sizes))]
        others = [one for one in merged if one != before and one["num_warps"] * threads <= MOST_THREADS]
        return others[:1] if self.small else others


def _together(calls: Sequence[tune.Call]) -> tune.Call:
    def call() -> None:
        for one in calls:
            one()

    return call


def _us(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(1000 * milliseconds, 2)
