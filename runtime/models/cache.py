"""The tensors behind what mixers declare that they store."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sirocco.runtime.host import use_huge_pages
from sirocco.runtime.models.cache_spec import (
    CacheLayout,
    CacheSpec,
    KvCacheSpec,
    LatentCacheSpec,
    StateCacheSpec,
    TokenCacheSpec,
)
from sirocco.runtime.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of one layer, each [N, Hkv, S, D]: N blocks of S slots. `group` says whose tables lead there."""

    k: Tensor
    v: Tensor
    group: int = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.k, self.v


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Latents and rotated key parts of one layer, [N, S, R + rope_dim]. `group` says whose tables lead there."""

    latent: Tensor
    group: int = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.latent,)


@dataclass(frozen=True, slots=True)
class StateCache:
    """Recurrent state of one layer: for each name a tensor [slots, ...]."""

    group: ClassVar[int] = 0

    tensors: dict[str, Tensor]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy the states in slots source [n] to slots target [n]: to keep one at a border, or to go back to it."""
        for tensor in self.tensors.values():
            tensor.index_copy_(0, target, tensor.index_select(0, source))


Cache = KvCache | LatentCache | StateCache | None


def allocated_bytes(caches: Iterable[Cache]) -> int:
    """Memory behind the caches, counted once where several are views of it."""
    tensors = [tensor for cache in caches if cache is not None for tensor in _tensors(cache)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(cache: KvCache | LatentCache | StateCache) -> Iterable[Tensor]:
    return cache.tensors.values() if isinstance(cache, StateCache) else cache.tensors


def touch(caches: Iterable[Cache], num_blocks: int) -> None:
    """Write to the first blocks, so that the system finds memory for them now and not within the first requests."""
    for cache in caches:
        if isinstance(cache, KvCache | LatentCache):
            for tensor in cache.tensors:
                tensor[:num_blocks].zero_()


@dataclass(frozen=True, slots=True)
class CacheSize:
    """How much to allocate: N blocks of S token slots, and slots for the state of so many requests."""

    num_blocks: int
    block_size: int
    num_states: int
    dtype: torch.dtype
    device: torch.device | str

    def empty(self, shape: Sequence[int]) -> Tensor:
        tensor = torch.empty(tuple(shape), dtype=self.dtype, device=self.device)
        if tensor.device.type == "cpu":  # a token's first use of a small page costs more than all that it computes
            use_huge_pages(tensor.data_ptr(), tensor.nbytes)
        return tensor


def allocate_caches(
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    num_states: int = 0,
) -> list[Cache]:
    """Caches of every layer for `num_blocks` blocks of `block_size` tokens and `num_states` requests, in layer order.

    One block table leads to all of them. The contents are undefined: no slot is read before it is written, and on a CPU
    untouched pages cost no memory.
    """
    size = CacheSize(num_blocks, block_size, num_states, dtype, device)
    return [_allocate(cache, size) for cache in spec.caches]


def allocate_pool(
    spec: ModelSpec,
    layout: CacheLayout,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    num_states: int = 0,
) -> list[Cache]:
    """Caches of every layer as `layout` says, over `num_blocks` blocks of its pool; else as `allocate_caches`."""
    if len(layout.groups) == 1:
        return allocate_caches(spec, num_blocks, block_size, dtype, device, num_states)
    size = CacheSize(num_blocks, block_size, num_states, dtype, device)
    pool = size.empty([num_blocks * layout.block_bytes // dtype.itemsize])
    caches = [None if isinstance(cache, TokenCacheSpec) else _allocate(cache, size) for cache in spec.caches]
    for number, group in enumerate(layout.groups):
        for place, layer in enumerate(group.layers):
            cache = spec.caches[layer]
            assert isinstance(cache, TokenCacheSpec)
            shape = cache.plane_shape(block_size)
            units = pool.view(-1, *shape)
            first = place * cache.num_planes
            caches[layer] = _WRAP[type(cache)](*(units[first + i :] for i in range(cache.num_planes)), number)
    return caches


def _allocate(cache: CacheSpec, size: CacheSize) -> Cache:
    return _ALLOCATE[type(cache)](cache, size)


def _allocate_kv(cache: KvCacheSpec, size: CacheSize) -> KvCache:
    shape = (size.num_blocks, *cache.plane_shape(size.block_size))
    return KvCache(size.empty(shape), size.empty(shape))


def _allocate_latent(cache: LatentCacheSpec, size: CacheSize) -> LatentCache:
    return LatentCache(size.empty((size.num_blocks, *cache.plane_shape(size.block_size))))


def _allocate_state(cache: StateCacheSpec, size: CacheSize) -> StateCache:
    return StateCache(
        {
            name: torch.empty(
                (size.num_states, *state.shape),
                dtype=torch.float32 if state.float32 else size.dtype,
                device=size.device,
            )
            for name, state in cache.tensors
        }
    )


_ALLOCATE: dict[type[CacheSpec], Callable[[Any, CacheSize], Cache]] = {
    CacheSpec: lambda cache, size: None,
    KvCacheSpec: _allocate_kv,
    LatentCacheSpec: _allocate_latent,
    StateCacheSpec: _allocate_state,
}

# From the planes of a layer and the number of its group.
_WRAP: dict[type[CacheSpec], Callable[..., KvCache | LatentCache]] = {
    KvCacheSpec: KvCache,
    LatentCacheSpec: LatentCache,
}
