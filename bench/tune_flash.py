"""From how many queries of a request on flash-attn is faster than our prefill, by head dim.

Both are timed as an engine calls them, so flash-attn pays for gathering its keys from the cache.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sirocco.bench.kernel_cases import BLOCK_SIZE, NUM_HEADS, NUM_KV_HEADS, Setting, paged_layout, randn
from sirocco.kernels import flash
from sirocco.kernels.triton import attention
from sirocco.kernels.triton.tune import Measure

NAME = "flash-attn"
HEAD_DIMS = (64, 80, 96, 128, 192, 256)
QUERIES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
CONTEXTS = (0, 8192)  # cached before them


@dataclass(frozen=True, slots=True)
class Point:
    """Milliseconds of a request with so many queries."""

    queries: int
    ours: float
    theirs: float


def measure(
    device: torch.device,
    small: bool,
    measured: Measure,
    expired: Callable[[], bool],
    table: Path,
    add: Callable[[dict[str, Any]], None],
) -> None:
    """Add a row a head dim, and keep in a table from where on flash-attn wins."""
    if importlib.util.find_spec("flash_attn") is None:
        add({"kernel": NAME, "outcome": "not installed"})
        return
    setting = Setting(device, torch.bfloat16, small)
    for head_dim in HEAD_DIMS[:1] if small else HEAD_DIMS:
        row = {"kernel": NAME, "bucket": f"head dim {head_dim}"}
        if expired():
            add(row | {"outcome": "no time left"})
            continue
        try:
            points = _points(head_dim, setting, measured)
        except torch.OutOfMemoryError:
            add(row | {"outcome": "no memory left"})
            continue
        except RuntimeError as failure:
            add(row | {"outcome": f"cannot: {str(failure).splitlines()[0][:60]}"})
            continue
        least = crossover(points)
        flash.keep(head_dim, least, table)
        last = points[-1]
        add(
            row
            | {
                "options": {} if least is None else {"from queries": least},
                "us": round(1000 * last.theirs, 2),
                "us_before": round(1000 * last.ours, 2),
                "outcome": "never faster" if least is None else "faster",
            }
        )


def crossover(points: Sequence[Point]) -> int | None:
    """The least number of queries from which on flash-attn always wins; None where it does not with the most."""
    counts = sorted({point.queries for point in points}, reverse=True)
    least = None
    for count in counts:
        if any(point.theirs >= point.ours for point in points if point.queries == count):
            break
        least = count
    return least


def _points(head_dim: int, setting: Setting, measured: Measure) -> list[Point]:
    counts, contexts = ((4, 8), (0,)) if setting.small else (QUERIES, CONTEXTS)
    return [_point(head_dim, count, context, setting, measured) for count in counts for context in contexts]


def _point(head_dim: int, num_queries: int, context: int, setting: Setting, measured: Measure) -> Point:
    heads, kv_heads = (4, 2) if setting.small else (NUM_HEADS, NUM_KV_HEADS)
    layout, num_blocks = paged_layout([num_queries], [context + num_queries], setting.device)
    q = randn(setting, num_queries, heads, head_dim)
    keys, values = (randn(setting, num_blocks, kv_heads, BLOCK_SIZE, head_dim) for _ in range(2))
    scale = head_dim**-0.5
    prefill = flash.prefill(q, BLOCK_SIZE, layout, num_queries)
    assert prefill is not None, "the only request has that many queries"
    return Point(
        num_queries,
        ours=measured(lambda: attention.paged_attention(q, keys, values, layout, scale, None, None, None)),
        theirs=measured(lambda: prefill.attend(q, keys, values, scale, None, None)),
    )
