"""The pool of cache blocks: allocate, share, free. Ids only; the tensors belong to the runner.

Block 0 is the null block: padding rows of a captured graph write there, no request ever owns it. A freed block that the
prefix cache knows stays readable until it is needed again; such blocks are evicted in the order they were freed.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Layers that keep the same tokens: a block of the pool holds `block_tokens` of them, for no other group.

    With a `window` the layers look back over so many tokens, the query's own included, and need no others.
    """

    block_tokens: int
    window: int | None = None

    def blocks_for(self, length: int, step: int) -> int:
        """The most blocks that a request of `length` tokens holds at once, computed by at most `step` a time."""
        every = -(-length // self.block_tokens)
        if self.window is None:
            return every
        return min(every, (self.window + step + self.block_tokens - 3) // self.block_tokens + 1)


def longest_request(groups: Sequence[BlockGroup], num_blocks: int, step: int, limit: int) -> int:
    """Up to `limit`, how many tokens one request may have that has all blocks but the null block to itself."""

    def blocks(length: int) -> int:
        return sum(group.blocks_for(length, step) for group in groups)

    return bisect_right(range(limit + 1), num_blocks - 1, key=blocks) - 1


class BlockPool:
    """`num_blocks` counts the null block, so `num_blocks - 1` can be owned."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs at least one block beside the null block, got num_blocks={num_blocks}")
        self.num_blocks = num_blocks
        self.num_registered = 0  # names given so far, those of evicted blocks included
        self._refs = [0] * num_blocks
        self._empty = deque(range(1, num_blocks))  # free and unknown to the prefix cache
        self._cached: dict[int, None] = {}  # free, still holding a known content; oldest first
        self._name_of: dict[int, Hashable] = {}
        self._block_of: dict[Hashable, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._empty) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - self.num_free

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks, evicting the oldest cached ones if need be, or none at all when there are too few."""
        if count > self.num_free:
            return None
        blocks = []
        for _ in range(count):
            block = self._empty.popleft() if self._empty else self._evict()
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def find(self, name: Hashable) -> int | None:
        """The block that holds this content, if there is one. Does not take it."""
        return self._block_of.get(name)

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each block."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Give back one reference to each block, the last of a sequence first, so that prefixes outlive their tails."""
        for block in blocks:
            self._refs[block] -= 1
            assert self._refs[block] >= 0, f"block {block} was freed twice"
            if self._refs[block] == 0:
                if block in self._name_of:
                    self._cached[block] = None
                else:  # the next one to be taken: its memory is still in the processor's caches
                    self._empty.appendleft(block)

    def register(self, block: int, name: Hashable) -> None:
        """Let the prefix cache find this block, whose content is complete. The first block with a content wins."""
        if name not in self._block_of and block not in self._name_of:
            self._block_of[name] = block
            self._name_of[block] = name
            self.num_registered += 1

    def forget(self) -> None:
        """Drop every cached content that no request uses."""
        while self._cached:
            self._empty.append(self._evict())

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        del self._block_of[self._name_of.pop(block)]
        return block
