"""Measuring a kernel's options on the device at hand, and keeping the best in its configuration file."""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from sirocco.kernels.triton import attention, common, mla
from sirocco.kernels.triton.common import INTERPRETED, Options, compile_launch, device_key, recording
from sirocco.kernels.triton.compile import spilled_bytes

Call = Callable[[], object]
Measure = Callable[[Call], float]  # milliseconds of a call
Bucket = tuple[int | None, Options]  # the largest size that it holds, None in a kernel's last

_UNFIT = (OutOfResources, PTXASError, CompilationError)


class NothingFits(RuntimeError):
    """None of a kernel's candidates can be launched on the device."""


def choices(**values: Iterable[int]) -> list[Options]:
    """Every combination of values by option name."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def buckets(family: str, kernel: str) -> list[Bucket]:
    """What a kernel is configured with on this device."""
    rows = common._buckets(family, kernel, device_key())
    return [(None if limit == float("inf") else int(limit), options) for limit, options in rows]


def time_of(family: str, kernel: str, call: Call, options: Options, measure: Measure | None = None) -> float | None:
    """Milliseconds of `call` with these options; None where they do not fit the device or do not compile for it."""
    with _using(family, kernel, options):
        try:
            return (measure or triton.testing.do_bench)(call)
        except Exception as error:
            if not _unfit(error):
                raise
            return None


def _unfit(error: Exception) -> bool:
    """Whether it says that options do not suit the device; a pass of the compiler that fails has no type of its own."""
    return isinstance(error, _UNFIT) or (isinstance(error, RuntimeError) and "PassManager" in str(error))


def best_options(
    family: str,
    kernel: str,
    call: Call,
    candidates: Iterable[Options],
    measure: Measure | None = None,
    also: Sequence[Call] = (),
) -> tuple[Options, float]:
    """The options with which `call` takes least, and its milliseconds.

    Passed over are candidates that spill registers, and those that do not fit the device or do not compile, for `call`
    or for one of `also`; `NothingFits` when none is left.
    """
    best: tuple[Options, float] | None = None
    compiles = torch.cuda.is_available() and not INTERPRETED
    for options in candidates:
        if compiles and spills(family, kernel, call, options):
            continue
        if any(time_of(family, kernel, one, options, _once) is None for one in also):
            continue
        milliseconds = time_of(family, kernel, call, options, measure)
        if milliseconds is not None and (best is None or milliseconds < best[1]):
            best = options, milliseconds
    if best is None:
        raise NothingFits(f"no configuration of {kernel} that was tried fits the device")
    return best


def _once(call: Call) -> float:
    call()
    return 0.0


def spills(family: str, kernel: str, call: Call, options: Options) -> bool:
    """Whether what `call` launches with these options spills registers, as nothing that ships may.

    False where it does not compile: `time_of` finds that.
    """
    with _using(family, kernel, options), recording() as launches:
        call()
    # Launchers decide about descriptors by the block size, and about the rows of a tile by the heads of a group.
    chosen = {name: value for name, value in options.items() if name not in ("DESCRIPTORS", "BLOCK_M")}
    try:
        return any(spilled_bytes(compile_launch(one)) for one in launches if chosen.items() <= one.options.items())
    except Exception as error:
        if not _unfit(error):
            raise
        return False


def keep(family: str, kernel: str, rows: Sequence[Bucket]) -> None:
    """Write all buckets of a kernel into the device's part of `configs/<family>.json`.

    ValueError where they do not rise to one without a limit, so that some size had no options, or without a device.
    """
    model, architecture = device_key()
    if model == "default":
        raise ValueError("configurations are kept for a device, and there is none")
    limits = [limit for limit, _ in rows]
    if limits != [*sorted({limit for limit in limits if limit is not None}), None]:
        raise ValueError(f"buckets of {kernel} rise to one that has no limit, not {limits}")
    path = common.CONFIGS / f"{family}.json"
    table: dict[str, Any] = json.loads(path.read_text())
    part = table.setdefault(model, {"measured": None, "kernels": {}})
    part["measured"] = {"architecture": architecture, "triton": triton.__version__, "torch": torch.__version__}
    part["kernels"][kernel] = [({} if limit is None else {"up_to": limit}) | options for limit, options in rows]
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text_of(table))
    unfinished.replace(path)  # whole or not at all, whenever this process is ended
    _forget()


def text_of(table: dict[str, Any]) -> str:
    """A configuration file: JSON with a line for each bucket."""
    spread = json.dumps(table, indent=2, ensure_ascii=False) + "\n"
    return re.sub(r"\{\s+([^{}\[\]]+?)\s+\}", lambda row: "{" + re.sub(r",\s+", ", ", row[1]) + "}", spread)


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Read and write configurations in a folder, which first receives the shipped ones that it lacks.

    None is where they are. Raises OSError where the folder cannot be written.
    """
    shipped = common.CONFIGS
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in shipped.glob("*.json"):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
        common.CONFIGS = folder
        _forget()
    try:
        yield
    finally:
        common.CONFIGS = shipped
        _forget()


@contextmanager
def _using(family: str, kernel: str, options: Options) -> Iterator[None]:
    common.override[family, kernel] = options
    _forget_shapes()
    try:
        yield
    finally:
        del common.override[family, kernel]
        _forget_shapes()


def _forget() -> None:
    common.forget_configurations()
    _forget_shapes()


def _forget_shapes() -> None:
    """How steps are cut depends on the options of both kinds of tiles, and is worked out once."""
    attention.work_shape.cache_clear()
    mla.latent_shape.cache_clear()
