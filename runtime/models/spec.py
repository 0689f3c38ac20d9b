"""What a decoder is made of, as data. An architecture is a function from `config.json` to a `ModelSpec`.

Nothing here imports torch. A mechanism (attention, feed-forward) is one spec class, and a layer is a choice of them, so
hybrids, alternating windows and dense-first stacks are tuples of blocks and never a question about a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# What checkpoints call the weights: a module path of the decoder, `*` for a layer's number, to the path or paths in the
# checkpoint, fused in this order.
WeightNames = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, a ramp between them (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Interpolation by parts (arXiv:2309.00071); `attention_factor` multiplies cos and sin."""

    factor: float
    original_max_len: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """A rotary embedding of the first `rotary_dim` dimensions of a head, in half or interleaved layout."""

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A norm over the last axis: root mean square, or mean and variance with an optional bias."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False

    def num_parameters(self, size: int) -> int:
        return size * (2 if self.bias else 1)


@dataclass(frozen=True, slots=True)
class KvCacheSpec:
    """What an attention layer stores per token: a key and a value for each KV head; past `window` tokens it may go."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    def bytes_per_token(self, dtype_size: int) -> int:
        return 2 * self.num_kv_heads * self.head_dim * dtype_size


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention. `scale` multiplies the scores, `window` counts the keys seen including the query's own,
    `softcap` bounds scores by tanh, `qk_norm` normalises each head of q and k before the rotary embedding."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    window: int | None = None
    softcap: float | None = None
    qk_norm: NormSpec | None = None
    qkv_bias: bool = False
    out_bias: bool = False

    @property
    def cache(self) -> KvCacheSpec:
        return KvCacheSpec(self.num_kv_heads, self.head_dim, self.window)

    def num_parameters(self, width: int) -> int:
        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        norms = 2 * self.qk_norm.num_parameters(self.head_dim) if self.qk_norm else 0
        biases = rows * self.qkv_bias + width * self.out_bias
        return rows * width + self.num_heads * self.head_dim * width + biases + norms


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A feed-forward of width `hidden`: `down(act(gate) * up)` when gated, `down(act(up))` otherwise."""

    hidden: int
    activation: str
    gated: bool = True
    bias: bool = False

    def num_parameters(self, width: int) -> int:
        up = self.hidden * (2 if self.gated else 1)
        return (up + self.hidden) * width + (up + width) * self.bias


MixerSpec = AttentionSpec
FfnSpec = MlpSpec


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One layer: each of mixer and feed-forward reads a norm of the residual stream and adds to it."""

    mixer: MixerSpec
    ffn: FfnSpec
    norm: NormSpec

    def num_parameters(self, width: int) -> int:
        return self.mixer.num_parameters(width) + self.ffn.num_parameters(width) + 2 * self.norm.num_parameters(width)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder: token embedding, `layers` in order, `norm`, output head (the embedding again when tied)."""

    vocab_size: int
    width: int
    layers: tuple[BlockSpec, ...]
    norm: NormSpec
    max_model_len: int
    tied_embeddings: bool = False

    @property
    def num_parameters(self) -> int:
        embeddings = self.vocab_size * self.width * (1 if self.tied_embeddings else 2)
        blocks = sum(block.num_parameters(self.width) for block in self.layers)
        return embeddings + blocks + self.norm.num_parameters(self.width)

    @property
    def caches(self) -> tuple[KvCacheSpec, ...]:
        """What each layer stores, in layer order."""
        return tuple(block.mixer.cache for block in self.layers)

    def cache_bytes_per_token(self, dtype_size: int) -> int:
        """Bytes that one token occupies in the caches of all layers."""
        return sum(cache.bytes_per_token(dtype_size) for cache in self.caches)
