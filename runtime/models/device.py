"""Where a model runs and in which dtype."""

import functools
from pathlib import Path

import torch

from sirocco.runtime.errors import ModelLoadError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """The named device, or for "auto" the best there is; one with an index becomes the thread's current one.

    Raises `ModelLoadError` where it is unknown or absent.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise ModelLoadError(f"unknown device {name!r}: choose auto, {', '.join(DEVICES)}")
    if not available[kind]:
        raise ModelLoadError(f"device {kind!r} is not available on this machine")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelLoadError(f"unknown device {name!r}: an index is a number, as in cuda:0") from None
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise ModelLoadError(f"device {name!r} is not available on this machine")
        torch.cuda.set_device(device)  # Triton's kernels and captures go to the thread's current one
    return device


def choose_dtype(name: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """The named dtype; for "auto" float32 where the checkpoint is, else bfloat16 where the device is fast at it."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ModelLoadError(f"unknown dtype {name!r}: choose auto, {', '.join(DTYPES)}")
    if checkpoint not in ("bfloat16", "float16"):
        return torch.float32
    if fast_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "mps":
            return bool(torch.backends.mps.is_macos_or_newer(14, 0))
        case _:
            return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them (x86 `flags`, ARM `Features`); empty where there is no such list."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":") for line in lines)
    return frozenset(next((value.split() for name, _, value in found if name.strip() in ("flags", "Features")), ()))
