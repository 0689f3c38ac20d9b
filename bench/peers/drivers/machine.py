"""What the machine itself can do at this moment: the rates that bound every engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import Spec

_READ_BYTES = 1 << 30  # beyond any cache
_SIDE = 2048
_REPEATS = 5


def version() -> str:
    return f"torch {torch.__version__}"


class Model:
    """Not a model: `rates` is all there is."""

    def __init__(self, spec: Spec) -> None:
        torch.set_num_threads(spec["threads"])

    @torch.inference_mode()
    def rates(self) -> dict[str, float]:
        """Memory read in bytes a second (a sum) and products of bfloat16 matrices in operations a second."""
        values = torch.ones(_READ_BYTES // 4)
        read_s = _median_seconds(lambda: values.sum())
        left, right = (torch.randn(_SIDE, _SIDE).bfloat16() for _ in range(2))
        matmul_s = _median_seconds(lambda: F.linear(left, right))
        return {"read_bytes_s": _READ_BYTES / read_s, "matmul_flop_s": 2 * _SIDE**3 / matmul_s}


def _median_seconds(call: Callable[[], torch.Tensor]) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
