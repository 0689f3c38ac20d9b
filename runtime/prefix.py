"""Names for the content of full blocks, and the cache that finds by them what equal prefixes can share.

A name is BLAKE2b-256 over its parent's name and a unit of token ids. The first parent is derived from whatever must
keep contents apart: the caller's salt and the regime of a length-dependent rotary embedding.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from sirocco.runtime.blocks import BlockGroup, BlockPool
from sirocco.runtime.snapshots import Snapshots
from sirocco.runtime.tables import BlockTables

DIGEST_BYTES = 32


def root_digest(salt: str | None, regime: int = 0) -> bytes:
    """The parent of a sequence's first unit."""
    return blake2b(f"{regime} {salt or ''}".encode(), digest_size=DIGEST_BYTES, person=b"sirocco.root").digest()


def extend_digests(digests: list[bytes], root: bytes, token_ids: Sequence[int], unit: int) -> None:
    """Append the names of the full units of `token_ids` that `digests` does not hold yet."""
    parent = digests[-1] if digests else root
    for start in range(len(digests) * unit, len(token_ids) - unit + 1, unit):
        content = array("i", token_ids[start : start + unit]).tobytes()
        parent = blake2b(parent + content, digest_size=DIGEST_BYTES).digest()
        digests.append(parent)


@dataclass(frozen=True, slots=True)
class Match:
    """A prefix of `length` tokens: for each group how many of its first blocks are not needed and those that follow,
    and the slot of the recurrent state.
    """

    length: int
    found: list[tuple[int, list[int]]]
    snapshot: int | None = None

    @property
    def blocks(self) -> list[int]:
        return [block for _, blocks in self.found for block in blocks]


class PrefixCache:
    """Finds prefixes for which every group of layers has data: all blocks, or those in its window; and the state.

    Digests name units of `unit` tokens, which divides the tokens of every group's block.
    """

    def __init__(
        self, pool: BlockPool, groups: Sequence[BlockGroup], unit: int, snapshots: Snapshots | None = None
    ) -> None:
        self.unit = unit
        self.snapshots = snapshots
        self.border = math.lcm(*(group.block_tokens for group in groups))  # a prefix ends at a multiple of it
        self._pool = pool
        self._groups = groups

    def match(self, digests: Sequence[bytes], limit: int) -> Match:
        """The longest known prefix of at most `limit` tokens. Does not take its blocks."""
        length = self._longest(digests, limit)
        found = []
        for group, blocks in enumerate(self._groups):
            first, last = self._needed(blocks, length)
            known = (self._block(digests, group, index) for index in range(first, last))
            found.append((first, [block for block in known if block is not None]))
        snapshot = None
        if self.snapshots is not None and length:
            snapshot = self.snapshots.use(digests[length // self.unit - 1])
        return Match(length, found, snapshot)

    def register(self, tables: BlockTables, digests: Sequence[bytes], start: int, stop: int) -> None:
        """Make known the blocks that units `start` to `stop` completed."""
        for group, blocks in enumerate(self._groups):
            units, table = blocks.block_tokens // self.unit, tables.blocks[group]
            for index in range(max(start // units, tables.num_left[group]), stop // units):
                self._pool.register(table[index], (group, digests[(index + 1) * units - 1]))

    def _longest(self, digests: Sequence[bytes], limit: int) -> int:
        length = self._floor(limit)
        for group, blocks in enumerate(self._groups):
            if blocks.window is None:
                length = self._floor(self._run(digests, group, length // blocks.block_tokens) * blocks.block_tokens)
        while length and (shorter := self._without_hole(digests, length)) < length:
            length = shorter
        return length

    def _run(self, digests: Sequence[bytes], group: int, most: int) -> int:
        """How many blocks from the first on are known."""
        return next((index for index in range(most) if self._block(digests, group, index) is None), most)

    def _without_hole(self, digests: Sequence[bytes], length: int) -> int:
        """This length if windows and states have all it needs, else the longest that may do without what it lacks."""
        if self.snapshots is not None and digests[length // self.unit - 1] not in self.snapshots:
            return length - self.border
        for group, blocks in enumerate(self._groups):
            if blocks.window is not None:
                first, last = self._needed(blocks, length)
                for index in range(last - 1, first - 1, -1):
                    if self._block(digests, group, index) is None:
                        return self._floor(index * blocks.block_tokens)
        return length

    def _needed(self, group: BlockGroup, length: int) -> tuple[int, int]:
        """The blocks, from the first to before the last, that queries from position `length` on look back to."""
        last = length // group.block_tokens
        if group.window is None:
            return 0, last
        return min(max(length - group.window + 1, 0) // group.block_tokens, last), last

    def _block(self, digests: Sequence[bytes], group: int, index: int) -> int | None:
        units = self._groups[group].block_tokens // self.unit
        return self._pool.find((group, digests[(index + 1) * units - 1]))

    def _floor(self, length: int) -> int:
        return length // self.border * self.border
