"""`sirocco bench gpu`: in ten minutes, whether a GPU's numbers are right and how fast they come.

Each part runs in a process of its own, so that one that fails or hangs costs its share of the time and nothing else:
the kernel tests on the device, `bench kernels`, then the engine against transformers' continuous batching on random
weights. Results go to a folder with the device's name.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirocco.bench import report
from sirocco.bench.peers import files

COLUMNS = (
    ("part", "part"),
    ("outcome", "outcome"),
    ("seconds", "seconds"),
    ("figures", "figures"),
)

LEAST_SECONDS = 10.0  # for a part, however little time is left
TUNING_SHARE = 0.3  # of the time


@dataclass(frozen=True, slots=True)
class GpuBench:
    """The plan. `small` is for trying it where there is no GPU: tiny sizes and a tiny model."""

    out: Path
    device: str = "auto"
    minutes: float = 10.0
    shapes: Sequence[str] = ("qwen3-0.6b", "qwen3-8b")
    requests: int = 64
    prompt_len: int = 256
    gen_len: int = 128
    small: bool = False
    tune: bool = False  # first, for as long as its share of the time allows


@dataclass(frozen=True, slots=True)
class Part:
    """A command that writes JSON to a file or says by its exit status how it went."""

    name: str
    arguments: Sequence[str]
    share: float  # of the time that is left when it starts


def measure(bench: GpuBench) -> list[dict[str, Any]]:
    """One row a part, also written to the folder together with what the parts wrote.

    Raises `RequestError` when the folder cannot be written at the end.
    """
    folder = bench.out / folder_name(bench)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * bench.minutes
    # A GPU needs no kernels for the CPU, whose compiling and measuring would take from its time.
    environment = os.environ | ({} if bench.device == "cpu" else {"SIROCCO_NATIVE": "0"})
    rows = []
    for part in plan(bench):
        allowed = max(LEAST_SECONDS, part.share * (deadline - time.monotonic()))
        rows.append(_run(part, folder, allowed, environment))
    text = json.dumps({"parts": rows, "versions": _versions()}, indent=2) + "\n"
    files.replace_all(folder, {"gpu.json": text.encode()})
    return rows


def plan(bench: GpuBench) -> list[Part]:
    """The parts in the order in which a person wants to know."""
    small = ["--small"] if bench.small else []
    dtypes = "float32" if bench.small else "bfloat16,float16,float32"
    shapes = ["tiny"] if bench.small else bench.shapes
    load = [str(bench.requests), str(bench.prompt_len), str(bench.gen_len), bench.device]
    parts = [
        Part("tests", ["-m", "sirocco.bench.gpu_tests", bench.device], 0.3),
        Part(
            "kernels", ["-m", "sirocco", "bench", "kernels", "--device", bench.device, "--dtype", dtypes, *small], 0.4
        ),
    ]
    if bench.tune:
        parts.insert(0, _tuning(bench))
    for shape in shapes:
        parts.append(Part(f"engine-{shape}", ["-m", "sirocco.bench.gpu_engine", "sirocco", shape, *load], 0.4))
        parts.append(
            Part(f"transformers-{shape}", ["-m", "sirocco.bench.gpu_engine", "transformers", shape, *load], 0.5)
        )
    return parts


def _tuning(bench: GpuBench) -> Part:
    """What it finds is in use in the parts that follow, but for a small trial's."""
    out = ["--small", "--out", str(bench.out / "tuned")] if bench.small else []
    seconds = max(1, round(60 * bench.minutes * (TUNING_SHARE - 0.05)))  # a candidate is not broken off
    return Part("tune", ["-m", "sirocco", "bench", "tune", "--seconds", str(seconds), *out], TUNING_SHARE)


def _run(part: Part, folder: Path, seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    result = folder / f"{part.name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-P", *part.arguments, "--json", str(result)]
    started = time.monotonic()
    with open(folder / f"{part.name}.log", "w") as log:
        try:
            status = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
            outcome = "passed" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s"
    took = round(time.monotonic() - started, 1)
    try:
        figures = _figures(result)
    except ValueError:  # cut off, as by the end of the part's time
        figures = {}
        outcome = "failed (its figures cannot be read)" if outcome == "passed" else outcome
    return {"part": part.name, "outcome": outcome, "seconds": took, "figures": figures}


def _figures(result: Path) -> dict[str, Any]:
    """What a part wrote, of a list only its length; nothing where there is no file. Raises ValueError."""
    figures = json.loads(result.read_text() or "{}") if result.exists() else {}
    if isinstance(figures, list):
        return {"rows": len(figures)}
    if not isinstance(figures, dict):
        raise ValueError("neither figures nor rows")
    return figures


def folder_name(bench: GpuBench) -> str:
    """The device's name as a folder."""
    from sirocco.bench.kernels import device_name
    from sirocco.runtime.models.device import choose_device

    name = device_name(choose_device(bench.device))
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _versions() -> dict[str, str]:
    return report.versions("sirocco", "torch", "triton", "transformers") | {
        "threads": os.environ.get("OMP_NUM_THREADS", "")
    }
