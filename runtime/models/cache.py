"""The tensors behind what mixers declare that they store."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sirocco.runtime.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of one layer, each [N, Hkv, S, D]: N blocks of S slots."""

    k: Tensor
    v: Tensor

    @property
    def num_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


def allocate_caches(
    spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str
) -> list[KvCache]:
    """Caches of every layer for `num_blocks` blocks of `block_size` slots, in layer order.

    The contents are undefined: no slot is read before it is written, and on a CPU untouched pages cost no memory.
    """
    caches = []
    for cache in spec.caches:
        shape = (num_blocks, cache.num_kv_heads, block_size, cache.head_dim)
        k, v = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        caches.append(KvCache(k, v))
    return caches
