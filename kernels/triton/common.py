# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""What the kernels share: launches and their counters, tuned options, checks, a product that interprets correctly."""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as triton itself decides when a kernel is decorated
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

CONFIGS = Path(__file__).parent / "configs"

Options = dict[str, int]  # compile-time values of a kernel by name, and num_warps and num_stages
override: dict[tuple[str, str], Options] = {}  # by family and kernel: options under trial


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A launch as its launcher asked for it."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).strip("_")


_counts: Counter[str] = Counter()
_kernels: dict[str, Any] = {}
_recorded: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel, or only note it while `recording`; the one way in which kernels are launched."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, args, options))
        return
    name = kernel.__name__
    _counts[name] += 1
    _kernels[name] = kernel
    kernel[grid](*args, **options)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of making them, so that launchers may be called with tensors on the meta device."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launches() -> dict[str, int]:
    """How often each kernel was launched in this process, by the kernel's name without underscores around it."""
    return {name.strip("_"): count for name, count in _counts.items()}


def compiled_variants() -> int:
    """How many variants of launched or warmed kernels this process has compiled or loaded; a rise stalls a step."""
    if INTERPRETED:
        return 0
    return sum(len(caches[0]) for kernel in _kernels.values() for caches in kernel.device_caches.values())


def compile_launch(launch: Launch) -> Any:
    """Compile, for the current device, what a recorded launch would run; returns triton's compiled kernel."""
    _kernels[launch.kernel.__name__] = launch.kernel
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)


def tuned(family: str, kernel: str, size: int) -> Options:
    """The options of a kernel for the first bucket that holds `size`, as measured on this device or else by default.

    They are read once from `configs/<family>.json`: device, or architecture, or "default" -> kernel -> buckets in
    rising order of "up_to", the last of which has none.
    """
    if override and (family, kernel) in override:
        return override[family, kernel]
    for limit, options in _buckets(family, kernel, device_key()):
        if size <= limit:
            return options
    raise ValueError(f"no configuration of {kernel} holds size {size}")


def device_keys() -> tuple[str, str]:
    """Names under which configurations may stand for the current device: its model, its architecture."""
    if not torch.cuda.is_available():
        return "default", "default"
    properties = torch.cuda.get_device_properties()
    model = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    if torch.version.hip:
        return model, str(properties.gcnArchName).split(":")[0]
    return model, f"sm_{properties.major}{properties.minor}"


_target: tuple[str, str] | None = None


def device_key() -> tuple[str, str]:
    """`device_keys()`, found once, unless `configured_for` says otherwise."""
    return _found_device() if _target is None else _target


@contextmanager
def configured_for(model: str, architecture: str) -> Iterator[None]:
    """Use the configurations of a device that need not be here."""
    global _target
    before, _target = _target, (model, architecture)
    try:
        yield
    finally:
        _target = before


@functools.cache
def _found_device() -> tuple[str, str]:
    return device_keys()


@functools.cache
def configurations(family: str) -> dict[str, Any]:
    """What `configs/<family>.json` says."""
    table: dict[str, Any] = json.loads((CONFIGS / f"{family}.json").read_text())
    return table


def forget_configurations() -> None:
    """Read the configurations anew when they are next asked for."""
    configurations.cache_clear()
    _buckets.cache_clear()


@functools.cache
def _buckets(family: str, kernel: str, device: tuple[str, str]) -> list[tuple[float, Options]]:
    table = configurations(family)
    for key in (*device, "default"):
        if rows := table.get(key, {}).get("kernels", {}).get(kernel):
            return [(row.get("up_to", float("inf")), {k: v for k, v in row.items() if k != "up_to"}) for row in rows]
    raise ValueError(f"configs/{family}.json has no default for {kernel}")


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and 1."""
    return 1 << max(0, n - 1).bit_length()


def require_dtype(operator: str, *tensors: Tensor | None) -> None:
    """Raise ValueError unless all are float32, float16 or bfloat16."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in FLOATS:
            raise ValueError(f"{operator} has no kernel for {tensor.dtype}: float32, float16 or bfloat16")


def rows_of(operator: str, x: Tensor) -> Tensor:
    """x [..., C] as [T, C] without a copy; ValueError where rows are not evenly apart or channels not adjacent."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"{operator} needs adjacent channels, not a stride of {x.stride(-1)}")
    if x.dim() == 2:
        return x
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        raise ValueError(f"{operator} needs evenly spaced rows, not strides {x.stride()}") from None


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """a @ b + acc in float32; UPCAST (pass INTERPRETED) because the interpreter multiplies the bits of bfloat16."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
