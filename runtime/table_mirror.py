"""Block tables of all slots as the kernels read them, kept in step with the scheduler's through plans."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sirocco.runtime.models.cache_spec import CacheGroup
from sirocco.runtime.transfer import to_device

IntArray = NDArray[np.int64]
Entry = tuple[int, int, list[int]]  # slot, index in its table, block ids


class TableMirror:
    """The tables of one group of layers: `host` [slots, P] int32, and `device` once steps are captured."""

    def __init__(self, group: CacheGroup, num_slots: int, max_len: int, block_size: int) -> None:
        self._block_size = block_size
        self._stride = group.stride
        self._offsets = np.array(group.offsets, np.int32)
        self._each = len(group.offsets)  # entries that a block of the pool makes
        num_blocks = -(-max_len // (block_size * self._each))
        self.host = np.zeros((num_slots, num_blocks * self._each), np.int32)
        self.device: Tensor | None = None

    def to(self, device: torch.device) -> Tensor:
        """The tables on the device, from now on kept in step there too."""
        self.device = torch.from_numpy(self.host).to(device, copy=True)
        return self.device

    def extend(self, changes: Iterable[Entry]) -> None:
        """Enter blocks of the pool."""
        where: list[int] = []
        for slot, index, blocks in changes:
            first = index * self._each
            entries = self._entries(blocks)
            self.host[slot, first : first + len(entries)] = entries
            if self.device is not None:
                start = slot * self.host.shape[1] + first
                where += range(start, start + len(entries))
        if self.device is not None and where:
            index_and_entries = np.stack([np.array(where), self.host.reshape(-1)[where]]).astype(np.int64)
            places, values = to_device(index_and_entries, self.device.device)
            self.device.view(-1).index_copy_(0, places, values.to(torch.int32))

    def slot_mapping(self, slots: IntArray, block: IntArray, offset: IntArray) -> IntArray:
        """Where the kernels write tokens [T] that stand at `offset` of their requests' `block`-th S tokens."""
        return self.host[slots, block].astype(np.int64) * self._block_size + offset

    def _entries(self, blocks: list[int]) -> list[int] | NDArray[np.int32]:
        if self._each == self._stride == 1:
            return blocks
        return (np.array(blocks, np.int32)[:, None] * self._stride + self._offsets).reshape(-1)


def by_group(changes: Iterable[tuple[int, int, int, list[int]]], num_groups: int) -> list[list[Entry]]:
    """A plan's new blocks (slot, group, index, block ids), without the group, for each group."""
    sorted_out: list[list[Entry]] = [[] for _ in range(num_groups)]
    for slot, group, index, blocks in changes:
        sorted_out[group].append((slot, index, blocks))
    return sorted_out
