"""Captured decode steps: a step of one token a row is replayed as a whole instead of launched kernel by kernel.

There is a capture for each of a few numbers of rows; a step runs in the smallest that holds it. Everything that a step
changes (ids, positions, slots, lengths, tables, the attention kernels' work) lies in tensors that stay. How many rows
each expert has only the device knows: launches cover the most tiles that there can be. Rows without a request compute
token 0 at position 0 over the null block, and leave their recurrent state in a slot that is nobody's.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch, refill
from sirocco.kernels.backend import use_triton
from sirocco.kernels.mamba import StateBatch
from sirocco.runtime.blocks import NULL_BLOCK
from sirocco.runtime.models.step import Placement

MAX_ROWS = 512  # beyond, a step computes for so long that its launches do not show

IntArray = NDArray[np.int64]


class Graph(Protocol):
    """Something captured that can run again."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]  # captures a function and the tensor that it returns


class Forward(Protocol):
    """The model over B rows of one token each, whose keys and values go to a placement for each group of layers."""

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        regimes: Tensor,
        placements: Sequence[Placement],
        states: StateBatch | None,
    ) -> Tensor: ...


def capturable(device: torch.device) -> bool:
    """Whether a step of decodes on a device launches the same kernels whatever its lengths and whoever its experts.

    Triton's do, in all layers that a decoder may have; torch definitions look lengths and experts up on the host.
    """
    return use_triton(torch.empty(0, device=device))


class CudaCapture:
    """Captures on a CUDA device. All captures share one pool of memory, as only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()  # one for all, since each would keep a workspace of its own

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            step()  # compiles kernels and makes workspaces, which a capture may not
        torch.cuda.current_stream().wait_stream(self._side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another engine of the process goes on allocating meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            hidden = step()
        return graph, hidden


class DecodeGraphs:
    """Captures for up to `max_rows` rows over `tokens` [slots, L] and tables [slots, P], whose last slot is nobody's.

    There is a table for each group of layers. Where the model is `recurrent`, that slot's states are nobody's too. The
    captures are made once, by `capture`; a step of decodes that finds none counts as a miss and runs uncaptured.
    """

    def __init__(
        self,
        forward: Forward,
        tokens: Tensor,
        tables: Sequence[Tensor],
        block_size: int,
        max_rows: int,
        recurrent: bool = False,
    ) -> None:
        self.misses = 0
        self._captures: list[_Captured] = []
        # The largest first: smaller ones then find their memory in the pool.
        sizes = reversed(row_buckets(max_rows))
        self._buffers = [_Buffers(forward, tokens, tables, block_size, rows, recurrent) for rows in sizes]

    def capture(self, capture: Capture) -> None:
        """Record every step; to be called before the first request."""
        self._captures = sorted((_Captured(one, capture) for one in self._buffers), key=lambda one: one.rows)

    def replay(
        self, slots: IntArray, positions: IntArray, regimes: IntArray, slot_mappings: Sequence[IntArray]
    ) -> Tensor | None:
        """Hidden states [B, C] of one token in each of B slots, which the next replay overwrites; None for a miss.

        `regimes` [B] are those of the rotary embedding (`rope_regime`), 0 where it does not depend on lengths.
        """
        captured = next((one for one in self._captures if one.rows >= len(slots)), None)
        if captured is None:
            self.misses += 1
            return None
        return captured.replay(slots, positions, regimes, slot_mappings)


def row_buckets(max_rows: int) -> list[int]:
    """Numbers of rows to capture, rising; padding adds no more than a quarter past 64 rows.

    Up to 8 rows there is none: the experts of one row more would be weights that nobody else reads.
    """
    most = min(max_rows, MAX_ROWS)
    steps = [*range(1, 8), *range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, MAX_ROWS + 1, 64)]
    return sorted({*(rows for rows in steps if rows < most), most})


class _Buffers:
    """The tensors of a step of `rows` decodes, and the step over them."""

    def __init__(
        self,
        forward: Forward,
        tokens: Tensor,
        tables: Sequence[Tensor],
        block_size: int,
        rows: int,
        recurrent: bool,
    ) -> None:
        device = tokens.device
        self.rows = rows
        self._forward = forward
        self._tokens = tokens
        self._tables = tables
        self._nobody = len(tokens) - 1
        self._null_slot = NULL_BLOCK * block_size
        # Slots, positions, regimes, and a slot mapping for each table.
        self._indices = torch.empty(3 + len(tables), rows, dtype=torch.int64, device=device)
        self._seq_lens = torch.ones(rows, dtype=torch.int32, device=device)
        self._kv_lens = [1] * rows
        cu_seqlens_q = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._placements = [
            Placement(
                AttentionBatch(
                    cu_seqlens_q=cu_seqlens_q,
                    seq_lens=self._seq_lens,
                    block_table=torch.zeros(rows, table.shape[1], dtype=torch.int32, device=device),
                    query_lens=[1] * rows,
                    kv_lens=self._kv_lens,
                    static=True,
                ),
                slot_mapping,
            )
            for table, slot_mapping in zip(tables, self._indices[3:], strict=True)
        ]
        self._states: StateBatch | None = None
        if recurrent:
            has_state = torch.zeros(rows, dtype=torch.bool, device=device)
            self._states = StateBatch(self._indices[0], has_state, [1] * rows, static=True)
        nobody = np.zeros(0, np.int64)
        self.write(nobody, nobody, nobody, [nobody] * len(tables))

    def write(self, slots: IntArray, positions: IntArray, regimes: IntArray, slot_mappings: Sequence[IntArray]) -> None:
        """Set the rows of the next step; nothing waits for the device."""
        packed = np.zeros((3 + len(slot_mappings), self.rows), np.int64)
        packed[0, len(slots) :] = self._nobody
        packed[3:, len(slots) :] = self._null_slot
        packed[:, : len(slots)] = slots, positions, regimes, *slot_mappings
        self._kv_lens[:] = (packed[1] + 1).tolist()
        host = torch.from_numpy(packed)
        if self._indices.is_cuda:
            host = host.pin_memory()
        self._indices.copy_(host, non_blocking=True)
        for placement in self._placements:
            refill(placement.batch)

    def step(self) -> Tensor:
        """Hidden states [rows, C]."""
        slots, positions, regimes = self._indices[:3]
        for table, placement in zip(self._tables, self._placements, strict=True):
            torch.index_select(table, 0, slots, out=placement.batch.block_table)
        torch.add(positions, 1, out=self._seq_lens)
        if self._states is not None:  # a request's first token finds what another left in the slot
            torch.gt(positions, 0, out=self._states.has_state)
        return self._forward(self._tokens[slots, positions], positions, regimes, self._placements, self._states)


class _Captured:
    """A recorded step."""

    def __init__(self, buffers: _Buffers, capture: Capture) -> None:
        self.rows = buffers.rows
        self._buffers = buffers
        self._graph, self._hidden = capture(buffers.step)

    def replay(
        self, slots: IntArray, positions: IntArray, regimes: IntArray, slot_mappings: Sequence[IntArray]
    ) -> Tensor:
        self._buffers.write(slots, positions, regimes, slot_mappings)
        self._graph.replay()
        return self._hidden[: len(slots)]
