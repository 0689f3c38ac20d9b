"""How a budget of bytes is divided among blocks, recurrent states and kept states, before any of it is taken."""

from collections.abc import Sequence
from dataclasses import dataclass

from sirocco.runtime.blocks import longest_request
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.cache_spec import CacheLayout, CacheSpec, bytes_per_token, cache_layout
from sirocco.runtime.wire import CacheMemory

SNAPSHOTS_EACH = 4  # kept states for every request that can run at once
SNAPSHOT_INTERVAL = 512  # tokens at least from one kept state of a request to its next


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be allocated. `step` is the most tokens of a request that one step computes."""

    layout: CacheLayout
    num_blocks: int
    num_seqs: int
    num_snapshots: int
    max_model_len: int
    step: int

    @property
    def num_states(self) -> int:
        """Slots for the states of requests, for kept ones, and one for padding rows of captured steps."""
        return self.num_seqs + self.num_snapshots + 1 if self.layout.state_bytes else 0

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.layout.block_bytes + self.num_states * self.layout.state_bytes

    @property
    def snapshot_interval(self) -> int:
        """So that one request at full length takes a quarter of the kept states at most."""
        return max(SNAPSHOT_INTERVAL, self.max_model_len // max(self.num_snapshots // 4, 1))

    @property
    def capacity(self) -> int:
        """Tokens that the pool holds at once, of a request that has left no window behind."""
        most = (self.num_blocks - 1) * max(group.blocks.block_tokens for group in self.layout.groups)
        return longest_request(self.layout.block_groups, self.num_blocks, most, most)

    def report(self, caches: Sequence[CacheSpec], dtype_size: int) -> CacheMemory:
        """The plan in figures."""
        by_kind = bytes_per_token(caches, dtype_size)
        each = sum(group.blocks_for(self.max_model_len, self.step) for group in self.layout.block_groups)
        return CacheMemory(
            total_bytes=self.total_bytes,
            full_bytes_per_token=by_kind.get("full", 0),
            window_bytes_per_token=by_kind.get("window", 0),
            latent_bytes_per_token=by_kind.get("latent", 0),
            state_bytes_per_request=self.layout.state_bytes,
            block_bytes=self.layout.block_bytes,
            block_tokens=[group.blocks.block_tokens for group in self.layout.groups],
            num_snapshots=self.num_snapshots,
            capacity_tokens=self.capacity,
            full_length_requests=min((self.num_blocks - 1) // each, self.num_seqs),
        )


def plan_memory(
    caches: Sequence[CacheSpec],
    block_size: int,
    dtype_size: int,
    memory: int,
    max_num_seqs: int,
    max_model_len: int,
    step: int,
    keep_states: bool = True,
) -> MemoryPlan:
    """Divide `memory` bytes. Raises `ModelLoadError` where it is too small for one request or one block.

    The states of running requests take half of it at most, one that is nobody's as much as one of theirs, kept ones a
    quarter of the rest; then as many blocks as fit, and no more than all requests at full length could use. So a plan
    may have fewer requests at once or shorter ones than were asked for.
    """
    layout = cache_layout(caches, block_size, dtype_size)
    num_seqs, num_snapshots, left = max_num_seqs, 0, memory
    if layout.state_bytes:
        num_seqs = min(num_seqs, memory // 2 // layout.state_bytes)
        if num_seqs < 1:
            raise ModelLoadError(
                f"kv_memory of {memory} bytes is too small: "
                f"the recurrent state of one request takes {layout.state_bytes} bytes, and may take half of it"
            )
        left -= (num_seqs + 1) * layout.state_bytes
        if keep_states:
            num_snapshots = min(num_seqs * SNAPSHOTS_EACH, left // 4 // layout.state_bytes)
            left -= num_snapshots * layout.state_bytes
    groups = layout.block_groups
    most = num_seqs * sum(group.blocks_for(max_model_len, max_model_len) for group in groups) + 1
    num_blocks = min(left // layout.block_bytes, most) if layout.block_bytes else most
    max_model_len = longest_request(groups, num_blocks, step, max_model_len)
    if max_model_len < 1:
        needed = (sum(group.blocks_for(1, 1) for group in groups) + 1) * layout.block_bytes
        raise ModelLoadError(f"kv_memory of {memory} bytes is too small: blocks for one token take {needed} bytes")
    return MemoryPlan(layout, num_blocks, num_seqs, num_snapshots, max_model_len, step)


def describe(memory: CacheMemory) -> list[str]:
    """Lines for a log."""
    kinds = {
        "full attention": memory.full_bytes_per_token,
        "window attention": memory.window_bytes_per_token,
        "latent attention": memory.latent_bytes_per_token,
    }
    parts = [f"{size} bytes ({kind})" for kind, size in kinds.items() if size]
    lines = [
        f"cache: {memory.total_bytes} bytes; a token takes {' + '.join(parts) or '0 bytes'}",
        f"cache: {memory.capacity_tokens} tokens fit, or {memory.full_length_requests} requests at full length; "
        f"blocks of {memory.block_bytes} bytes hold {', '.join(map(str, memory.block_tokens))} tokens",
    ]
    if memory.state_bytes_per_request:
        lines.append(
            f"cache: a request's recurrent state takes {memory.state_bytes_per_request} bytes; "
            f"{memory.num_snapshots} more are kept for prefixes"
        )
    return lines
