"""Grouped-query attention over a paged cache."""

from dataclasses import dataclass

from torch import Tensor, nn

from sirocco.kernels.attention import AttentionBatch, paged_attention
from sirocco.kernels.kv import norm_rope_write
from sirocco.runtime.models.cache import KvCache
from sirocco.runtime.models.linear import FusedLinear, Linear
from sirocco.runtime.models.norm import RmsNorm
from sirocco.runtime.models.rope import RopeTables
from sirocco.runtime.models.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers share in one forward: the batch's layout, where each token's state goes, each rope's tables."""

    batch: AttentionBatch
    slot_mapping: Tensor
    ropes: tuple[RopeTables, ...]


class Attention(nn.Module):
    """q, k and v in one product, then norm, rotary embedding and cache write in one pass, then attention.

    `rope_index` says which of the step's tables this layer turns by; None leaves q and k as they are.
    """

    def __init__(self, spec: AttentionSpec, width: int, rope_index: int | None) -> None:
        super().__init__()
        self.spec = spec
        self.rope_index = rope_index
        self.interleaved = spec.rope is not None and spec.rope.interleaved
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.qkv = FusedLinear(width, {"q": q_size, "k": kv_size, "v": kv_size}, spec.qkv_bias)
        self.q_norm = RmsNorm(spec.qk_norm, spec.head_dim) if spec.qk_norm else None
        self.k_norm = RmsNorm(spec.qk_norm, spec.head_dim) if spec.qk_norm else None
        self.out = Linear(q_size, width, spec.out_bias)

    def forward(self, x: Tensor, step: Step, cache: KvCache) -> Tensor:
        """x [T, C] to [T, C]; writes the step's keys and values to the cache."""
        spec = self.spec
        rope = None if self.rope_index is None else step.ropes[self.rope_index]
        q = norm_rope_write(
            self.qkv(x),
            self.q_norm.weight if self.q_norm else None,
            self.k_norm.weight if self.k_norm else None,
            spec.qk_norm.eps if spec.qk_norm else 0.0,
            rope.cos if rope else None,
            rope.sin if rope else None,
            self.interleaved,
            cache.k,
            cache.v,
            step.slot_mapping,
            spec.num_heads,
            spec.num_kv_heads,
        )
        attended = paged_attention(q, cache.k, cache.v, step.batch, spec.scale, spec.window, spec.softcap)
        out: Tensor = self.out(attended.flatten(1))
        return out
