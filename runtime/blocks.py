"""The pool of cache blocks: allocate, share, free. Ids only; the tensors belong to the runner.

Block 0 is the null block: padding rows of a captured graph write there, no request ever owns it. A freed block that the
prefix cache knows stays readable until it is needed again; such blocks are evicted in the order they were freed.
"""

from collections import deque
from collections.abc import Iterable

NULL_BLOCK = 0


class BlockPool:
    """`num_blocks` counts the null block, so `num_blocks - 1` can be owned."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs at least one block beside the null block, got num_blocks={num_blocks}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._refs = [0] * num_blocks
        self._empty = deque(range(1, num_blocks))  # free and unknown to the prefix cache
        self._cached: dict[int, None] = {}  # free, still holding a known prefix; oldest first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

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

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known run of `hashes` from its start. Does not take them."""
        blocks = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

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
                if block in self._hash_of:
                    self._cached[block] = None
                else:
                    self._empty.append(block)

    def register(self, block: int, digest: bytes) -> None:
        """Let the prefix cache find this block, whose content is complete. The first block with a content wins."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def forget(self) -> None:
        """Drop every cached prefix that no request uses."""
        while self._cached:
            self._empty.append(self._evict())

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        del self._block_of[self._hash_of.pop(block)]
        return block
