"""The blocks of one request: a block table for each group of layers, over the shared pool. Ids only."""

from collections.abc import Sequence

from sirocco.runtime.blocks import NULL_BLOCK, BlockGroup

Extension = tuple[int, int, list[int]]  # group, index in its table, block ids


class BlockTables:
    """`room` is the number of tokens that every table has blocks for. Blocks that left a window are null."""

    __slots__ = ("_groups", "blocks", "num_left", "room")

    def __init__(self, groups: Sequence[BlockGroup]) -> None:
        self._groups = groups
        self.room = 0
        self.blocks: list[list[int]] = [[] for _ in groups]
        self.num_left = [0] * len(groups)  # of the first blocks of each table, given back or never held

    @property
    def num_held(self) -> int:
        """Blocks in the tables, those of all groups together."""
        return sum(map(len, self.blocks)) - sum(self.num_left)

    def missing(self, length: int) -> list[int]:
        """How many blocks each table lacks for `length` tokens."""
        return [
            max(-(-length // group.block_tokens) - len(table), 0)
            for group, table in zip(self._groups, self.blocks, strict=True)
        ]

    def extend(self, counts: Sequence[int], blocks: list[int]) -> list[Extension]:
        """Append the next `counts[g]` of the blocks to table g; returns what changed."""
        extensions, first = [], 0
        for group, (table, count) in enumerate(zip(self.blocks, counts, strict=True)):
            if count:
                extensions.append((group, len(table), blocks[first : first + count]))
                table += blocks[first : first + count]
                first += count
        self._measure()
        return extensions

    def adopt(self, found: Sequence[tuple[int, list[int]]]) -> list[Extension]:
        """Begin with blocks that exist: for each group how many of its first are not needed, and those that follow."""
        self.num_left = [first for first, _ in found]
        self.blocks = [[NULL_BLOCK] * first + blocks for first, blocks in found]
        self._measure()
        return [(group, first, blocks) for group, (first, blocks) in enumerate(found) if blocks]

    def leave(self, position: int) -> list[int]:
        """Drop the blocks that no query from `position` on looks back to, and return them."""
        left = []
        for group, (limits, table) in enumerate(zip(self._groups, self.blocks, strict=True)):
            if limits.window is not None:
                num_left = self.num_left[group]
                first = (position - limits.window + 1) // limits.block_tokens
                if first > num_left:
                    left += table[num_left:first]
                    table[num_left:first] = [NULL_BLOCK] * (first - num_left)
                    self.num_left[group] = first
        return left

    def clear(self) -> list[int]:
        """Drop all blocks and return them, the last of each table first."""
        held = [
            block
            for table, num_left in zip(self.blocks, self.num_left, strict=True)
            for block in reversed(table[num_left:])
        ]
        self.room = 0
        self.blocks = [[] for _ in self._groups]
        self.num_left = [0] * len(self._groups)
        return held

    def _measure(self) -> None:
        self.room = min(len(table) * group.block_tokens for group, table in zip(self._groups, self.blocks, strict=True))
