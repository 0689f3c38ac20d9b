"""The tensors behind what mixers declare that they store."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sirocco.runtime.models.cache_spec import CacheSpec, KvCacheSpec, LatentCacheSpec, StateCacheSpec
from sirocco.runtime.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of one layer, each [N, Hkv, S, D]: N blocks of S slots."""

    k: Tensor
    v: Tensor

    @property
    def num_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Latents and rotated key parts of one layer, [N, S, R + rope_dim]."""

    latent: Tensor

    @property
    def num_bytes(self) -> int:
        return self.latent.nbytes


@dataclass(frozen=True, slots=True)
class StateCache:
    """Recurrent state of one layer: for each name a tensor [slots, ...]."""

    tensors: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy the states in slots source [n] to slots target [n]: to keep one at a border, or to go back to it."""
        for tensor in self.tensors.values():
            tensor.index_copy_(0, target, tensor.index_select(0, source))


Cache = KvCache | LatentCache | StateCache | None


@dataclass(frozen=True, slots=True)
class CacheSize:
    """How much to allocate: N blocks of S token slots, and slots for the state of so many requests."""

    num_blocks: int
    block_size: int
    num_states: int
    dtype: torch.dtype
    device: torch.device | str


def allocate_caches(
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    num_states: int = 0,
) -> list[Cache]:
    """Caches of every layer for `num_blocks` blocks of `block_size` tokens and `num_states` requests, in layer order.

    The contents are undefined: no slot is read before it is written, and on a CPU untouched pages cost no memory.
    """
    size = CacheSize(num_blocks, block_size, num_states, dtype, device)
    return [_ALLOCATE[type(cache)](cache, size) for cache in spec.caches]


def _allocate_kv(cache: KvCacheSpec, size: CacheSize) -> KvCache:
    shape = (size.num_blocks, cache.num_kv_heads, size.block_size, cache.head_dim)
    k, v = (torch.empty(shape, dtype=size.dtype, device=size.device) for _ in range(2))
    return KvCache(k, v)


def _allocate_latent(cache: LatentCacheSpec, size: CacheSize) -> LatentCache:
    shape = (size.num_blocks, size.block_size, cache.rank + cache.rope_dim)
    return LatentCache(torch.empty(shape, dtype=size.dtype, device=size.device))


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
