"""What mixers store between steps, as data: per token, or per request. Nothing here imports torch."""

import math
from dataclasses import dataclass


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

    def bytes_per_token(self, dtype_size: int) -> int:
        return 2 * self.num_kv_heads * self.head_dim * dtype_size


@dataclass(frozen=True, slots=True)
class LatentCacheSpec(CacheSpec):
    """A latent of `rank` and a rotated key part of `rope_dim` per token, shared by all heads (MLA)."""

    rank: int
    rope_dim: int

    def bytes_per_token(self, dtype_size: int) -> int:
        return (self.rank + self.rope_dim) * dtype_size


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
