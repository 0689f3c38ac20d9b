"""flash-attn for prompt chunks, where it is installed and was measured to be faster than our kernel.

`flash.json` holds what was measured: device (as `triton.common.device_keys` names it) -> head dim -> from how many
queries a request on it wins. A device that is not there was not measured and never uses it.
"""

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from sirocco.kernels.attention import AttentionBatch

TABLE = Path(__file__).with_name("flash.json")


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """The last rows of a step, from `row` and `token` on, for flash-attn: where their keys lie and begin."""

    row: int
    token: int
    blocks: Tensor  # [K] of all their keys
    offsets: Tensor  # [K]
    cu_seqlens_q: Tensor  # [rows + 1] int32
    cu_seqlens_k: Tensor
    max_query: int
    max_keys: int

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attention of q [T', H, D], the queries from `token` on."""
        from flash_attn import flash_attn_varlen_func

        # The keys lie in blocks of [Hkv, S, D] and it wants [K, Hkv, D]: a copy, small beside so many queries' work.
        keys, values = (cache.transpose(1, 2)[self.blocks, self.offsets] for cache in (k_cache, v_cache))
        out: Tensor = flash_attn_varlen_func(
            q,
            keys,
            values,
            self.cu_seqlens_q,
            self.cu_seqlens_k,
            self.max_query,
            self.max_keys,
            softmax_scale=scale,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            softcap=softcap or 0.0,
        )
        return out


def plan(q: Tensor, block_size: int, batch: "AttentionBatch") -> Prefill | None:
    """The rows of a step that flash-attn takes; None where there are none."""
    least = from_queries(q.shape[2], q.dtype)
    return None if least is None else prefill(q, block_size, batch, least)


def prefill(q: Tensor, block_size: int, batch: "AttentionBatch", least: int) -> Prefill | None:
    """The last rows of a step that all have at least so many queries; None where there are none."""
    row = len(batch.query_lens)
    while row and batch.query_lens[row - 1] >= least:
        row -= 1
    queries, keys = batch.query_lens[row:], batch.kv_lens[row:]
    if not queries or sum(batch.query_lens) != len(q):
        return None
    rows = np.repeat(np.arange(row, row + len(keys)), keys)
    positions = np.concatenate([np.arange(length) for length in keys])
    index = _to_device(np.stack([rows, positions]), q)
    starts = _to_device(np.array([[0, *np.cumsum(queries)], [0, *np.cumsum(keys)]], np.int32), q)
    return Prefill(
        row=row,
        token=sum(batch.query_lens[:row]),
        blocks=batch.block_table[index[0], index[1] // block_size].long(),
        offsets=index[1] % block_size,
        cu_seqlens_q=starts[0],
        cu_seqlens_k=starts[1],
        max_query=max(queries),
        max_keys=max(keys),
    )


def _to_device(values: NDArray[np.generic], like: Tensor) -> Tensor:
    host = torch.from_numpy(values)
    return (host.pin_memory() if like.is_cuda else host).to(like.device, non_blocking=True)


@functools.cache
def from_queries(head_dim: int, dtype: torch.dtype) -> int | None:
    """From how many queries of a request on flash-attn is faster here; None where it is absent or was not measured."""
    if dtype not in (torch.float16, torch.bfloat16) or importlib.util.find_spec("flash_attn") is None:
        return None
    from sirocco.kernels.triton.common import device_key

    measured: dict[str, Any] = json.loads(TABLE.read_text())
    for name in device_key():
        if (least := measured.get(name, {}).get(str(head_dim))) is not None:
            return int(least)
    return None


def keep(head_dim: int, least: int | None, path: Path | None = None) -> None:
    """Write, for this device, from how many queries on flash-attn is faster; None where it never is.

    ValueError where there is no device.
    """
    from sirocco.kernels.triton.common import device_key

    model = device_key()[0]
    if model == "default":
        raise ValueError("what was measured is kept for a device, and there is none")
    path = path or TABLE
    measured: dict[str, dict[str, int]] = json.loads((path if path.exists() else TABLE).read_text())
    by_head_dim = {int(dim): count for dim, count in measured.get(model, {}).items()}
    by_head_dim.pop(head_dim, None)
    if least is not None:
        by_head_dim[head_dim] = least
    measured[model] = {str(dim): by_head_dim[dim] for dim in sorted(by_head_dim)}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(measured, indent=2) + "\n")
    partial.replace(path)
    from_queries.cache_clear()
