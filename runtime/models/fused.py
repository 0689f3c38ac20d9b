"""Plain decoder layers as one call of the C++ kernels, which give the same numbers as the operators one by one."""

import torch
from torch import Tensor, nn

from sirocco.kernels.backend import FORCE_TRITON
from sirocco.kernels.native.layer import Layer, LayerParts, LayerSizes, LinearParts, StepPlace
from sirocco.kernels.native.ops import GATES, NORM_DTYPES
from sirocco.runtime.models.attention import Attention
from sirocco.runtime.models.block import PreNormBlock
from sirocco.runtime.models.cache import Cache, KvCache
from sirocco.runtime.models.linear import FusedLinear, Linear, PackedWeight
from sirocco.runtime.models.mlp import GatedMlp
from sirocco.runtime.models.norm import Norm, RmsNorm
from sirocco.runtime.models.spec import AttentionSpec, BlockSpec, MlpSpec
from sirocco.runtime.models.step import Step


def fuse(block: nn.Module, spec: BlockSpec, cache: Cache) -> "FusedLayer | None":
    """The layer over its cache as one call.

    None for whatever is not attention and a gated feed-forward, each behind a norm, in bfloat16 with weights that the
    kernels laid out.
    """
    mixer, mlp = block.mixer, block.ffn
    if not (type(block) is PreNormBlock and type(mixer) is Attention and type(mlp) is GatedMlp):
        return None
    attention, ffn = spec.mixer, spec.ffn
    assert isinstance(attention, AttentionSpec) and isinstance(ffn, MlpSpec)
    if FORCE_TRITON or attention.sinks or block.multiplier != 1.0 or mlp.gate not in GATES:
        return None
    if not isinstance(cache, KvCache) or cache.k.dtype is not torch.bfloat16 or attention.head_dim % 2:
        return None
    linears = [_linear(part) for part in (mixer.qkv, mixer.out, mlp.gate_up, mlp.down)]
    norms = [_norm(norm) for norm in (block.mixer_norm, block.ffn_norm, mixer.q_norm, mixer.k_norm) if norm]
    if any(part is None for part in (*linears, *norms)) or len({norm.dtype for norm in norms if norm is not None}) > 1:
        return None
    qkv, out, gate_up, down = (part for part in linears if part)
    mixer_norm, ffn_norm, *heads = (norm for norm in norms if norm is not None)
    q_norm, k_norm = heads or (None, None)
    sizes = LayerSizes(
        heads=attention.num_heads,
        inner=ffn.hidden,
        eps=block.mixer_norm.eps,
        qk_eps=attention.qk_norm.eps if attention.qk_norm else 0.0,
        scale=attention.scale,
        softcap=attention.softcap,
        window=attention.window,
        interleaved=mixer.interleaved,
        gate=mlp.gate,
    )
    parts = LayerParts(mixer_norm, ffn_norm, q_norm, k_norm, qkv, out, gate_up, down, cache.k, cache.v)
    return FusedLayer(Layer(parts, sizes), mixer.rope_index)


class FusedLayer:
    """A layer as one call; `rope_index` says by which of the step's tables it turns, if by any."""

    def __init__(self, layer: Layer, rope_index: int | None) -> None:
        self._layer = layer
        self._rope_index = rope_index

    def __call__(self, x: Tensor, residual: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        """The stream after the layer; a stream that has begun is overwritten."""
        place = step.places.get(self._rope_index)
        if place is None:
            place = step.places[self._rope_index] = _place(step, self._rope_index)
        return self._layer(x, residual, place)


def _place(step: Step, rope_index: int | None) -> StepPlace:
    tables = None if rope_index is None else step.ropes[rope_index]
    return StepPlace(
        step.batch.host_lens(),
        step.batch.block_table,
        step.slot_mapping,
        None if tables is None else (tables.cos, tables.sin),
    )


def _linear(layer: Linear) -> LinearParts | None:
    weight = layer.weight
    if type(layer) not in (Linear, FusedLinear) or not isinstance(weight, PackedWeight) or not weight.packed.native:
        return None
    return LinearParts(weight.packed.blocks, layer.bias)


def _norm(norm: Norm) -> Tensor | None:
    return norm.weight if isinstance(norm, RmsNorm) and norm.weight.dtype in NORM_DTYPES else None
