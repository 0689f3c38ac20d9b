"""Which program of the attention kernels does what: a step's queries cut into tiles, their keys into splits.

A tile is a run of queries of one request, with the query heads of a group packed into its rows. Its keys are split by
the batch's actual lengths, so that one long request among short ones does not set the time of the step. Tiles of few
rows (decodes) and full ones (prompt chunks) are two classes, each with its own launch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

ITEM = 8  # int32 of an item: table row, token, queries, position, first key, end of keys, slot or -1, nothing
MERGE = 4  # int32 of a merge: token, queries, first slot, splits
PREFILL, DECODE = 0, 1
# Programs asked for per processor. Decodes: the last of four waves at two programs a processor wastes 5 %, and what a
# split writes is 0.2 % of the keys it reads. Prefill: only when tiles leave processors idle. Reasoned, not measured.
PROGRAMS = (2, 8)
MIN_SPLIT = (512, 128)  # keys; below this the merge costs more than it gains
ANY_NUMBER = 1 << 62  # of splits: no tile is cut more coarsely because of others

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class WorkShape:
    """What the cutting depends on beside the lengths; the pairs are (prefill, decode)."""

    group: int
    num_kv_heads: int
    window: int | None
    rows: tuple[int, int]  # of a tile: queries times `group` fit into them
    keys: tuple[int, int]  # of one step of the kernel's loop
    num_processors: int

    def most_splits(self, kind: int) -> int:
        """How many items beyond one a tile a step may have."""
        return -(-PROGRAMS[kind] * self.num_processors // self.num_kv_heads)

    def min_split(self, kind: int) -> int:
        """From how many keys on a split pays."""
        return MIN_SPLIT[kind]


class Work:
    """One launch of a class, in device memory. A `static` one has a grid that any lengths fit, for graphs to replay; an
    `invariant` one cuts each tile by its own length alone."""

    def __init__(
        self, kind: int, shape: WorkShape, tiles: IntArray, device: torch.device, static: bool, invariant: bool = False
    ) -> None:
        assert not (static and invariant)
        self.kind = kind
        self.rows = int(tiles[:, 2].max()) * shape.group  # most rows that any tile has
        self._keys = shape.keys[kind]
        self._most_splits = ANY_NUMBER if invariant else shape.most_splits(kind)
        self._min_split = shape.min_split(kind)
        items, merges, self.slots = self._split(tiles)
        num_items, num_merges = len(items), len(merges)
        if static:
            num_items, num_merges = len(tiles) + self._most_splits, min(len(tiles), self._most_splits)
            self.slots = 2 * self._most_splits
        self._buffer = torch.empty(num_items * ITEM + num_merges * MERGE, dtype=torch.int32, device=device)
        self.items = self._buffer[: num_items * ITEM].view(-1, ITEM)
        self.merges = self._buffer[num_items * ITEM :].view(-1, MERGE)
        self._write(items, merges)

    def refill(self, tiles: IntArray) -> None:
        """Point a static launch at as many tiles of other lengths."""
        items, merges, slots = self._split(tiles)
        assert slots <= self.slots
        self._write(items, merges)

    def _split(self, tiles: IntArray) -> tuple[IntArray, IntArray, int]:
        return split(tiles, self._most_splits, self._min_split, self._keys)

    def _write(self, items: IntArray, merges: IntArray) -> None:
        assert len(items) <= len(self.items) and len(merges) <= len(self.merges)
        packed = np.zeros(self._buffer.numel(), np.int32)  # an item or merge of no queries does nothing
        packed[: items.size] = items.reshape(-1)
        packed[self.items.numel() :][: merges.size] = merges.reshape(-1)
        host = torch.from_numpy(packed)
        if self._buffer.is_cuda:
            host = host.pin_memory()  # a copy from pageable memory would wait
        self._buffer.copy_(host, non_blocking=True)


def cut(query_lens: Sequence[int], kv_lens: Sequence[int], shape: WorkShape) -> tuple[IntArray, IntArray]:
    """The step's tiles [X, 6] of prefill and of decode; queries of a request without keys make tiles without keys."""
    num_queries, num_keys = np.array(query_lens, np.int64), np.array(kv_lens, np.int64)
    prefill_queries = shape.rows[PREFILL] // shape.group
    decode_queries = shape.rows[DECODE] // shape.group
    is_decode = num_queries <= decode_queries
    per_tile = np.where(is_decode, decode_queries, prefill_queries)
    counts = -(-num_queries // per_tile)
    row = np.repeat(np.arange(len(num_queries)), counts)
    first = (np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)) * per_tile[row]  # within the request
    token = (np.cumsum(num_queries) - num_queries)[row] + first
    queries = np.minimum(num_queries[row] - first, per_tile[row])
    position = (num_keys - num_queries)[row] + first
    end = np.maximum(position + queries, 0)
    begin = np.zeros_like(end) if shape.window is None else np.maximum(position - shape.window + 1, 0)
    tiles = np.stack([row, token, queries, position, begin, end], axis=1).astype(np.int32)
    return tiles[~is_decode[row]], tiles[is_decode[row]]


def split(tiles: IntArray, most_splits: int, min_keys: int, step: int) -> tuple[IntArray, IntArray, int]:
    """Items [Y, ITEM], longest first, merges [Z, MERGE] and the number of slots, for tiles [X, 6].

    Splits have about the same number of keys in all tiles; Y <= X + most_splits.
    """
    begin = tiles[:, 4] // step * step  # whole steps: the kernel masks what lies before the first key
    length = tiles[:, 5] - begin
    aim = max(min_keys, -(-int(length.sum(dtype=np.int64)) // max(most_splits, 1)))
    splits = np.maximum(-(-length // aim), 1)
    size = (length + splits * step - 1) // (splits * step) * step
    splits = np.maximum(-(-length // np.maximum(size, 1)), 1)  # whole steps may need fewer
    tile = np.repeat(np.arange(len(tiles)), splits)
    index = np.arange(len(tile)) - np.repeat(np.cumsum(splits) - splits, splits)
    parts = np.where(splits > 1, splits, 0)
    first_slot = np.cumsum(parts) - parts
    items = np.zeros((len(tile), ITEM), np.int32)
    items[:, :4] = tiles[tile, :4]
    items[:, 4] = np.maximum(begin[tile] + index * size[tile], tiles[tile, 4])
    items[:, 5] = np.minimum(begin[tile] + (index + 1) * size[tile], tiles[tile, 5])
    items[:, 6] = np.where(splits[tile] > 1, first_slot[tile] + index, -1)
    items = items[np.argsort(items[:, 4] - items[:, 5], kind="stable")]
    merged = splits > 1
    merges = np.stack([tiles[:, 1], tiles[:, 2], first_slot, splits], axis=1)[merged].astype(np.int32)
    return items, merges, int(parts.sum())
