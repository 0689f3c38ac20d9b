"""What mixers store between steps, as data: per token, or per request. Nothing here imports torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sirocco.runtime.blocks import BlockGroup

CacheKind = Literal["full", "window", "latent", "state"]


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a mixer stores between steps: nothing, where a subclass does not say otherwise."""

    def bytes_per_token(self, dtype_size: int) -> int:
        return 0

    def bytes_per_request(self, dtype_size: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class KvCacheSpec(CacheSpec):
    """A key and a value per token for each KV head; past `window` tokens they may go."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    @property
    def kind(self) -> CacheKind:
        return "full" if self.window is None else "window"

    @property
    def num_planes(self) -> int:
        """Tensors of one shape: keys, values."""
        return 2

    def plane_shape(self, block_size: int) -> tuple[int, ...]:
        """[Hkv, S, D], what a plane holds of S tokens."""
        return self.num_kv_heads, block_size, self.head_dim

    def bytes_per_token(self, dtype_size: int) -> int:
        return 2 * self.num_kv_heads * self.head_dim * dtype_size


@dataclass(frozen=True, slots=True)
class LatentCacheSpec(CacheSpec):
    """A latent of `rank` and a rotated key part of `rope_dim` per token, shared by all heads (MLA)."""

    rank: int
    rope_dim: int

    @property
    def window(self) -> None:
        return None

    @property
    def kind(self) -> CacheKind:
        return "latent"

    @property
    def num_planes(self) -> int:
        return 1

    def plane_shape(self, block_size: int) -> tuple[int, ...]:
        """[S, R + P], what the plane holds of S tokens."""
        return block_size, self.rank + self.rope_dim

    def bytes_per_token(self, dtype_size: int) -> int:
        return (self.rank + self.rope_dim) * dtype_size


TokenCacheSpec = KvCacheSpec | LatentCacheSpec


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor of a request's recurrent state; `float32` keeps it so whatever the run dtype."""

    shape: tuple[int, ...]
    float32: bool = False


@dataclass(frozen=True, slots=True)
class StateCacheSpec(CacheSpec):
    """Recurrent state: tensors by name, overwritten in place, one of each per request."""

    tensors: tuple[tuple[str, StateTensor], ...]

    def bytes_per_request(self, dtype_size: int) -> int:
        return sum(math.prod(state.shape) * (4 if state.float32 else dtype_size) for _, state in self.tensors)


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """The layers that share block tables, and where the kernels find a block of theirs.

    Kernels count in units: what one plane of one layer holds of S tokens. Block b of the pool begins at unit
    `b * stride` of the group's first plane, and unit `b * stride + offsets[i]` holds its i-th S tokens.
    """

    blocks: BlockGroup
    layers: tuple[int, ...]
    stride: int = 1
    offsets: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How the layers of a model share one pool: every block of it takes `block_bytes`, whichever group owns it."""

    groups: tuple[CacheGroup, ...]
    block_bytes: int
    state_bytes: int  # of each request

    @property
    def block_groups(self) -> tuple[BlockGroup, ...]:
        return tuple(group.blocks for group in self.groups)


def cache_layout(caches: Sequence[CacheSpec], block_size: int, dtype_size: int) -> CacheLayout:
    """Group layers by how far they look back, in blocks of `block_size` tokens or a multiple of that.

    Where all look equally far, a block holds `block_size` tokens of every layer. Else each distinct declaration is a
    group; the widest has `block_size` tokens in a block, the others as many times that as fit the same bytes.
    """
    state_bytes = sum(cache.bytes_per_request(dtype_size) for cache in caches)
    layers: dict[TokenCacheSpec, list[int]] = {}
    for layer, cache in enumerate(caches):
        if isinstance(cache, TokenCacheSpec):
            layers.setdefault(cache, []).append(layer)
    windows = {cache.window for cache in layers}
    if len(windows) <= 1:
        one = CacheGroup(
            BlockGroup(block_size, next(iter(windows), None)),
            tuple(sorted(layer for numbers in layers.values() for layer in numbers)),
        )
        token_bytes = sum(cache.bytes_per_token(dtype_size) for cache in caches)
        return CacheLayout((one,), token_bytes * block_size, state_bytes)
    units = {cache: math.prod(cache.plane_shape(block_size)) * dtype_size for cache in layers}
    widest = max(units[cache] * cache.num_planes * len(numbers) for cache, numbers in layers.items())
    multiple = math.lcm(*units.values())
    block_bytes = -(-widest // multiple) * multiple
    groups = tuple(
        _packed(cache, tuple(numbers), block_size, block_bytes // units[cache]) for cache, numbers in layers.items()
    )
    return CacheLayout(groups, block_bytes, state_bytes)


def _packed(cache: TokenCacheSpec, layers: tuple[int, ...], block_size: int, stride: int) -> CacheGroup:
    """The group of these layers in blocks of `stride` units."""
    width = cache.num_planes * len(layers)
    offsets = tuple(width * i for i in range(stride // width))
    return CacheGroup(BlockGroup(block_size * len(offsets), cache.window), layers, stride, offsets)


def bytes_per_token(caches: Sequence[CacheSpec], dtype_size: int) -> dict[CacheKind, int]:
    """What one token takes in all layers of each kind, for the kinds that there are."""
    found: dict[CacheKind, int] = {}
    for cache in caches:
        if isinstance(cache, TokenCacheSpec):
            found[cache.kind] = found.get(cache.kind, 0) + cache.bytes_per_token(dtype_size)
    return found
