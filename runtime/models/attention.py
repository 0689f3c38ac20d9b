"""Grouped-query attention over a paged cache, or over the step's own tokens alone."""

import torch
from torch import Tensor, nn

from sirocco.kernels.attention import paged_attention
from sirocco.kernels.bidirectional import bidirectional_attention
from sirocco.kernels.kv import norm_rope_write
from sirocco.kernels.norm import layer_norm, rms_norm
from sirocco.kernels.rope import rotate
from sirocco.runtime.models.cache import KvCache
from sirocco.runtime.models.linear import FusedLinear, Linear
from sirocco.runtime.models.norm import LayerNorm, make_norm
from sirocco.runtime.models.rope import RopeTables
from sirocco.runtime.models.spec import AttentionSpec
from sirocco.runtime.models.step import Step
from sirocco.runtime.weights import Loadable, Slot


class Sinks(Loadable):
    """A logit per head that takes part in the softmax and attends to nothing."""

    values: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def slots(self) -> dict[str, Slot]:
        return {"sinks": Slot((self.num_heads,))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.values = tensors.pop("sinks")

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes


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
        self.q_norm = make_norm(spec.qk_norm, spec.head_dim) if spec.qk_norm else None
        self.k_norm = make_norm(spec.qk_norm, spec.head_dim) if spec.qk_norm else None
        self.sinks = Sinks(spec.num_heads) if spec.sinks else None
        self.out = Linear(q_size, width, spec.out_bias)

    def tables(self, step: Step) -> RopeTables | None:
        return None if self.rope_index is None else step.ropes[self.rope_index]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k and v [T, (H + 2 Hkv) D] of x [T, C], and the weights of the norms that q and k still need."""
        return self.qkv(x), self.q_norm.weight if self.q_norm else None, self.k_norm.weight if self.k_norm else None

    def forward(self, x: Tensor, step: Step, cache: KvCache) -> Tensor:
        """x [T, C] to [T, C]; writes the step's keys and values to the cache."""
        spec, rope = self.spec, self.tables(step)
        q = norm_rope_write(
            *self.project(x),
            spec.qk_norm.eps if spec.qk_norm else 0.0,
            rope.cos if rope else None,
            rope.sin if rope else None,
            self.interleaved,
            cache.k,
            cache.v,
            step.slot_mapping,
            spec.num_heads,
            spec.num_kv_heads,
            step.padded(),
        )
        sinks = self.sinks.values if self.sinks else None
        attended = paged_attention(q, cache.k, cache.v, step.batch, spec.scale, spec.window, spec.softcap, sinks)
        out: Tensor = self.out(attended.flatten(1))
        return out


class LayerNormAttention(Attention):
    """Attention whose heads of q and k go through a LayerNorm, which the pass over q and k does not know (Phi)."""

    def project(self, x: Tensor) -> tuple[Tensor, None, None]:
        spec = self.spec
        heads = self.qkv(x).view(len(x), -1, spec.head_dim)
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        assert isinstance(self.q_norm, LayerNorm) and isinstance(self.k_norm, LayerNorm)
        pairs = ((q.contiguous(), self.q_norm), (k.contiguous(), self.k_norm))
        q, k = (layer_norm(y, norm.weight, norm.bias, norm.eps) for y, norm in pairs)
        return torch.cat((q, k, v), dim=1).flatten(1), None, None


class BidirectionalAttention(Attention):
    """Attention among the tokens of each sequence of the step, on either side; it stores nothing."""

    def forward(self, x: Tensor, step: Step, cache: object) -> Tensor:
        """x [T, C] to [T, C]; the step holds every sequence whole."""
        spec, rope = self.spec, self.tables(step)
        heads = self.qkv(x).view(len(x), -1, spec.head_dim)
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if self.q_norm and self.k_norm:
            q, k = (rms_norm(y.contiguous(), n.weight, n.eps) for y, n in ((q, self.q_norm), (k, self.k_norm)))
        if rope:
            q, k = (rotate(y, rope.cos, rope.sin, self.interleaved) for y in (q, k))
        attended = bidirectional_attention(q, k, v, step.batch, spec.scale, spec.window, step.distance_bias)
        out: Tensor = self.out(attended.flatten(1))
        return out


def make_attention(spec: AttentionSpec, width: int, rope_index: int | None) -> Attention:
    if not spec.causal:
        return BidirectionalAttention(spec, width, rope_index)
    by_layer = spec.qk_norm is not None and spec.qk_norm.kind == "layer"
    return (LayerNormAttention if by_layer else Attention)(spec, width, rope_index)
