"""Compile every kernel for GPUs that need not be here, and report what each variant takes of them.

    python -m sirocco.kernels.triton.compile [--all] [--out bench/results/compile.md] [target …]

Launchers are called with tensors without data, so the signatures and configurations are theirs. Exits with 1 when a
variant spills registers or asks for more shared memory than its target has.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sirocco.kernels.triton import common
from sirocco.kernels.triton.cases import Call, further_calls, shipped_calls
from sirocco.kernels.triton.common import INTERPRETED, Launch, compile_launch, configured_for, recording

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what it is now; triton warns unless it is said


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU architecture: what triton calls it, and what one multiprocessor offers."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    registers: int  # 32-bit, for all threads of a multiprocessor (of one SIMD unit's 4 on CDNA)
    warps: int  # at most, on a multiprocessor
    shared: int  # bytes that one program may have
    shared_total: int


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 65536, 64, 163 << 10, 164 << 10),
        Target("sm_90", "cuda", 90, 32, 65536, 64, 227 << 10, 228 << 10),
        Target("sm_100", "cuda", 100, 32, 65536, 64, 227 << 10, 228 << 10),
        Target("gfx942", "hip", "gfx942", 64, 4 * 512 * 64, 32, 64 << 10, 64 << 10),
    )
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a compiled variant takes: registers a thread, bytes spilled a thread, bytes of shared memory a program."""

    kernel: str
    target: Target
    variant: str
    num_warps: int
    registers: int
    spilled: int
    shared: int

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that can be resident."""
        per_warp = -(-self.registers // 8) * 8 * self.target.warp_size
        programs = min(self.target.registers // (per_warp * self.num_warps), self.target.warps // self.num_warps)
        if self.shared:
            programs = min(programs, self.target.shared_total // self.shared)
        return programs * self.num_warps / self.target.warps

    @property
    def fault(self) -> str | None:
        """Why this variant must not ship, if so."""
        if self.spilled:
            return f"{self.spilled} bytes spilled"
        if self.shared > self.target.shared:
            return f"{self.shared} bytes of shared memory, {self.target.shared} at most"
        return None


class _AbsentDevice:
    """As much of a triton driver as compiling needs, for a GPU that need not be here."""

    def __init__(self, index: int, target: Any) -> None:
        self.index, self.target = index, target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.index  # triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """Let triton compile for a target, with the configurations that ship for it."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    if INTERPRETED:
        raise RuntimeError("kernels that were decorated for the interpreter cannot be compiled")
    index = 1000 + [*TARGETS].index(target.name)
    absent = _AbsentDevice(index, GPUTarget(target.backend, target.arch, target.warp_size))
    previous = driver._active
    driver.set_active(absent)
    try:
        with configured_for(target.name, target.name):
            yield
    finally:
        driver._active = previous


def compile_all(target: Target, some: Iterable[Call]) -> list[Usage]:
    """Compile what the calls launch for a target and the devices that were measured of it, each variant once."""
    usages: dict[str, Usage] = {}
    some = list(some)
    with compiling_for(target):
        for model in (target.name, *measured_devices(target)):
            with configured_for(model, target.name), recording() as launches:
                for call in some:
                    call()
            for launch in launches:
                kernel = compile_launch(launch)
                if kernel.hash not in usages:
                    usages[kernel.hash] = _usage(launch, kernel, target)
    return sorted(usages.values(), key=lambda usage: (usage.kernel, usage.variant))


def measured_devices(target: Target) -> list[str]:
    """Devices of this architecture that have configurations of their own, see `tune.keep`."""
    return sorted(
        {
            name
            for path in common.CONFIGS.glob("*.json")
            for name, part in common.configurations(path.stem).items()
            if (part["measured"] or {}).get("architecture") == target.name
        }
    )


def spilled_bytes(kernel: Any) -> int:
    """Bytes that a thread of a compiled kernel spills."""
    return (_nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel))[1]


def _usage(launch: Launch, kernel: Any, target: Target) -> Usage:
    registers, spilled = _nvidia(kernel) if target.backend == "cuda" else _amd(kernel)
    num_warps = kernel.metadata.num_warps
    return Usage(launch.name, target, _variant(launch), num_warps, registers, spilled, kernel.metadata.shared)


def _nvidia(kernel: Any) -> tuple[int, int]:
    """Registers and bytes of stack, which is where spills go, of the very binary that would be loaded."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


def _amd(kernel: Any) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory; scalars spilled to lanes of vector registers cost neither."""
    numbers = re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", kernel.asm["amdgcn"])
    found = {name: int(value) for name, value in numbers}
    return found["vgpr_count"], found["private_segment_fixed_size"]


def _variant(launch: Launch) -> str:
    dtypes = [str(arg.dtype).removeprefix("torch.") for arg in launch.args if isinstance(arg, torch.Tensor)]
    kinds = "/".join(dict.fromkeys(name for name in dtypes if name.startswith(("float", "bfloat"))))
    chosen = (f"{name}={value}" for name, value in launch.options.items() if value and name != "num_warps")
    return " ".join([kinds, *chosen])


def table(usages: list[Usage]) -> str:
    """A Markdown table, a row a variant."""
    lines = [
        "| kernel | target | variant | warps | registers | spilled | shared | occupancy |",
        "| --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for u in usages:
        numbers = f"{u.num_warps} | {u.registers} | {u.spilled} | {u.shared} | {u.occupancy:.0%}"
        lines.append(f"| {u.kernel} | {u.target.name} | {u.variant} | {numbers} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile for the named targets, all by default, and write the table."""
    import triton

    parser = argparse.ArgumentParser(prog="python -m sirocco.kernels.triton.compile", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--all", action="store_true", help="other dtypes and sizes too, not only each configuration")
    parser.add_argument("--out", type=Path, help="a file for the table, in place of standard output")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; known are {', '.join(TARGETS)}")
    chosen = [*shipped_calls(), *(further_calls() if options.all else ())]
    usages = [usage for name in options.targets or TARGETS for usage in compile_all(TARGETS[name], chosen)]
    text = f"""# Compiled kernels

triton {triton.__version__}. Registers and spilled bytes are a thread's, shared memory is a program's, occupancy is an
estimate. Nothing here was run.

{table(usages)}
"""
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    faults = [usage for usage in usages if usage.fault]
    for usage in faults:
        print(f"{usage.kernel} on {usage.target.name} ({usage.variant}): {usage.fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
