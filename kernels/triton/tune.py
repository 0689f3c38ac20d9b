"""Measuring a kernel's options on the device at hand, and keeping the best in its configuration file."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton

from sirocco.kernels.triton import common
from sirocco.kernels.triton.common import Options, device_keys

Measure = Callable[[Callable[[], object]], float]  # milliseconds of a call


def choices(**values: Iterable[int]) -> list[Options]:
    """Every combination of values by option name."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def best_options(
    family: str, kernel: str, call: Callable[[], object], candidates: list[Options], measure: Measure | None = None
) -> tuple[Options, float]:
    """The options with which `call` takes least, and its milliseconds.

    Candidates that do not fit the device's registers or shared memory are passed over; RuntimeError when none fits.
    """
    from triton.runtime.errors import OutOfResources

    measure = measure or triton.testing.do_bench
    found: list[tuple[float, int]] = []
    for index, options in enumerate(candidates):
        with _using(family, kernel, options):
            try:
                found.append((measure(call), index))
            except OutOfResources:
                continue
    if not found:
        raise RuntimeError(f"none of {len(candidates)} configurations of {kernel} fits the device")
    milliseconds, index = min(found)
    return candidates[index], milliseconds


def keep(family: str, kernel: str, up_to: int | None, options: Options, folder: Path | None = None) -> None:
    """Write the options of a bucket into the device's part of `configs/<family>.json`; None is the last bucket."""
    path = (folder or common.CONFIGS) / f"{family}.json"
    table: dict[str, Any] = json.loads(path.read_text())
    part = table.setdefault(device_keys()[0], {"kernels": {}})
    part["measured"] = {"triton": triton.__version__, "torch": torch.__version__}
    rows = [row for row in part["kernels"].get(kernel, ()) if row.get("up_to") != up_to]
    rows.append(({} if up_to is None else {"up_to": up_to}) | options)
    part["kernels"][kernel] = sorted(rows, key=lambda row: row.get("up_to", float("inf")))
    path.write_text(json.dumps(table, indent=2) + "\n")
    common.forget_configurations()


@contextmanager
def _using(family: str, kernel: str, options: Options) -> Iterator[None]:
    common.override[family, kernel] = options
    try:
        yield
    finally:
        del common.override[family, kernel]
