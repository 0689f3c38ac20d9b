"""`sirocco bench kernels`: operators against what the device can do at best, and beside torch's own.

Each operator is first compared with float64; one whose numbers are off reports no speed. The device's best is measured
in the same run: a large copy for bytes, a large product for operations. Times are medians over replays of a captured
call, so that launching costs nothing; but for the single short decode, sizes are beyond any cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sirocco.bench import report
from sirocco.bench.kernel_cases import CASES, OPERATORS, Case, Setting
from sirocco.bench.stats import percentile
from sirocco.kernels.backend import use_native, use_triton
from sirocco.runtime.errors import RequestError
from sirocco.runtime.models.device import DTYPES, choose_device

COLUMNS = (
    ("operator", "operator"),
    ("size", "size"),
    ("dtype", "dtype"),
    ("error, ppm", "error_ppm"),
    ("us", "us"),
    ("GB/s", "gbps"),
    ("of copy", "of_copy"),
    ("TFLOP/s", "tflops"),
    ("of matmul", "of_matmul"),
    ("others, us", "peers_us"),
)
_REPLAYS = 10  # of a captured row of calls, by `do_bench_cudagraph`, whose time is that of one
# The norm of the difference over the norm of the result: what rounding inputs to the weights of the sums may cost.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class KernelBench:
    """What to measure. `small` takes sizes that an interpreter can do, and says nothing about speed."""

    operators: Sequence[str] = OPERATORS
    device: str = "auto"
    dtypes: Sequence[str] = ("bfloat16",)
    small: bool = False
    seconds: float = 0.2  # of measuring, for each implementation of a case


def measure(
    bench: KernelBench, keep: Callable[[Sequence[dict[str, Any]]], None] = lambda rows: None
) -> list[dict[str, Any]]:
    """One row a case and dtype; those that are wrong are not `correct` and have no speed. `keep` gets the rows so far.

    Raises `RequestError` for an unknown operator or dtype, `ModelLoadError` for a device that is not there.
    """
    for name in bench.operators:
        if name not in OPERATORS:
            raise RequestError(f"unknown operator {name!r}: choose {', '.join(OPERATORS)}")
    for name in bench.dtypes:
        if name not in DTYPES:
            raise RequestError(f"unknown dtype {name!r}: choose {', '.join(DTYPES)}")
    device = choose_device(bench.device)
    rows = []
    for name in bench.dtypes:
        setting = Setting(device, DTYPES[name], bench.small)
        facts = _facts(setting)
        best = _best(setting, bench.seconds)
        for case in CASES:
            if case.operator in bench.operators:
                row = {"operator": case.operator, "size": "small" if bench.small else case.size, "dtype": name}
                rows.append({**row, **_measure(case, setting, best, bench.seconds), **facts})
                keep(rows)
    return rows


def passed(rows: Sequence[dict[str, Any]]) -> bool:
    return all(row["correct"] for row in rows)


@dataclass(frozen=True, slots=True)
class _Best:
    """Bytes and operations a second of the device."""

    bytes: float
    flops: float


@torch.inference_mode()
def _measure(case: Case, setting: Setting, best: _Best, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    error = check(case, setting)
    correct = error <= TOLERANCE[setting.dtype]
    checked = {"error_ppm": round(error * 1e6, 2), "correct": correct}
    if not correct:
        return checked
    trial = case.make(setting)
    try:
        took = timed(trial.run, setting.device, seconds)
    except ValueError as refusal:  # no kernel for this dtype at the full size
        return checked | {"us": f"cannot: {str(refusal)[:60]}"}
    peers: dict[str, float | str] = {}
    for name, run in trial.peers.items():
        try:
            peers[name] = round(timed(run, setting.device, seconds) * 1e6, 1)
        except (RuntimeError, NotImplementedError) as failure:
            peers[name] = f"cannot: {str(failure).splitlines()[0][:60]}"
    return checked | {
        "us": round(took * 1e6, 1),
        "gbps": round(trial.num_bytes / took / 1e9, 2),
        "of_copy": round(trial.num_bytes / took / best.bytes, 3),
        "tflops": round(trial.flops / took / 1e12, 3) if trial.flops else None,
        "of_matmul": round(trial.flops / took / best.flops, 3) if trial.flops else None,
        "peers_us": peers,
        "copy_gbps": round(best.bytes / 1e9, 1),
        "matmul_tflops": round(best.flops / 1e12, 3),
    }


@torch.inference_mode()
def check(case: Case, setting: Setting) -> float:
    """How far a case's numbers are from float64's, at its small size; NaN counts as infinitely far."""
    trial = case.make(Setting(setting.device, setting.dtype, small=True))
    out, exact = trial.run().double(), trial.exact()
    error = float((out - exact).norm() / exact.norm())
    return error if error == error else float("inf")


def timed(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median time of a call, in seconds."""
    run()
    if device.type == "cuda":
        from triton.testing import do_bench_cudagraph

        torch.cuda.synchronize(device)  # what is queued here its own stream would not wait for
        share = int(seconds * 1000 / _REPLAYS)
        return float(do_bench_cudagraph(run, rep=max(share, 1), return_mode="median")) / 1000
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return percentile(times, 50) or times[0]


def _best(setting: Setting, seconds: float) -> _Best:
    size = 1 << 10 if setting.small else 1 << 13
    source = torch.randn(size, size, device=setting.device).to(setting.dtype)
    large = torch.empty(1 << (20 if setting.small else 30), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(large)
    copy = timed(lambda: target.copy_(large), setting.device, seconds)
    product = timed(lambda: source @ source, setting.device, seconds)
    return _Best(2 * large.nbytes / copy, 2 * size**3 / product)


def _facts(setting: Setting) -> dict[str, Any]:
    x = torch.empty(1, device=setting.device, dtype=setting.dtype)
    return {
        "device": device_name(setting.device),
        "path": "triton" if use_triton(x) else "native" if use_native(x) else "torch",
        "versions": report.versions("sirocco", "torch", "triton"),
    }


def device_name(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else report.cpu_name()
