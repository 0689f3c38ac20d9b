"""Layers: how a mixer and a feed-forward stand to the residual stream, and which module carries out which spec.

Between layers the stream is a pair, (x [T, C] still to be added, residual [T, C] or None): adding is left to the norm
that reads the sum.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sirocco.runtime.models.attention import make_attention
from sirocco.runtime.models.cache import Cache
from sirocco.runtime.models.mamba import Mamba
from sirocco.runtime.models.mla import LatentAttention
from sirocco.runtime.models.mlp import make_mlp
from sirocco.runtime.models.moe import MoeFfn
from sirocco.runtime.models.norm import make_norm
from sirocco.runtime.models.spec import (
    AttentionSpec,
    BlockKind,
    BlockSpec,
    FfnSpec,
    MambaSpec,
    MixerSpec,
    MlaSpec,
    MlpSpec,
    MoeSpec,
)
from sirocco.runtime.models.step import Step

Stream = tuple[Tensor, Tensor | None]

# Mixers are called as mixer(x [T, C], step, cache) and feed-forwards as ffn(x [T, C]); both return [T, C].
MIXERS: dict[type, Callable[[Any, int, int | None], nn.Module]] = {
    AttentionSpec: make_attention,
    MlaSpec: LatentAttention,
    MambaSpec: Mamba,
}
FFNS: dict[type, Callable[[Any, int], nn.Module]] = {MlpSpec: make_mlp, MoeSpec: MoeFfn}


def make_mixer(spec: MixerSpec, width: int, rope_index: int | None) -> nn.Module:
    """The module of a mixer's spec; `rope_index` is the place of its rotary embedding's tables in the step."""
    return MIXERS[type(spec)](spec, width, rope_index)


def make_ffn(spec: FfnSpec, width: int) -> nn.Module:
    """The module of a feed-forward's spec."""
    return FFNS[type(spec)](spec, width)


class Block(nn.Module):
    """What all layers hold."""

    def __init__(self, spec: BlockSpec, width: int, rope_index: int | None) -> None:
        super().__init__()
        self.mixer = make_mixer(spec.mixer, width, rope_index)
        self.ffn = make_ffn(spec.ffn, width)
        self.mixer_norm = make_norm(spec.norm, width)
        self.multiplier = spec.residual_multiplier

    def scaled(self, x: Tensor) -> Tensor:
        return x if self.multiplier == 1.0 else x * self.multiplier


class PreNormBlock(Block):
    """Mixer and feed-forward each read a norm of the residual stream and add to it."""

    def __init__(self, spec: BlockSpec, width: int, rope_index: int | None) -> None:
        super().__init__(spec, width, rope_index)
        self.ffn_norm = make_norm(spec.norm, width)

    def forward(self, x: Tensor, residual: Tensor | None, step: Step, cache: Cache) -> Stream:
        normed, residual = self.mixer_norm(x, residual)
        normed, residual = self.ffn_norm(self.scaled(self.mixer(normed, step, cache)), residual)
        return self.scaled(self.ffn(normed)), residual


class SandwichBlock(PreNormBlock):
    """Pre-norm, with a norm over what is added too."""

    def __init__(self, spec: BlockSpec, width: int, rope_index: int | None) -> None:
        super().__init__(spec, width, rope_index)
        self.mixer_post_norm = make_norm(spec.norm, width)
        self.ffn_post_norm = make_norm(spec.norm, width)

    def forward(self, x: Tensor, residual: Tensor | None, step: Step, cache: Cache) -> Stream:
        normed, residual = self.mixer_norm(x, residual)
        added, _ = self.mixer_post_norm(self.mixer(normed, step, cache), None)
        normed, residual = self.ffn_norm(self.scaled(added), residual)
        added, _ = self.ffn_post_norm(self.ffn(normed), None)
        return self.scaled(added), residual


class ParallelBlock(Block):
    """Mixer and feed-forward read the same norm and add together."""

    def forward(self, x: Tensor, residual: Tensor | None, step: Step, cache: Cache) -> Stream:
        normed, residual = self.mixer_norm(x, residual)
        return self.scaled(self.mixer(normed, step, cache) + self.ffn(normed)), residual


class PostNormBlock(PreNormBlock):
    """Mixer and feed-forward read the stream itself, which is normed after each addition (arXiv:1706.03762)."""

    def forward(self, x: Tensor, residual: Tensor | None, step: Step, cache: Cache) -> Stream:
        x, _ = self.mixer_norm(self.scaled(self.mixer(x, step, cache)), x)
        x, _ = self.ffn_norm(self.scaled(self.ffn(x)), x)
        return x, None


BLOCKS: dict[BlockKind, type[Block]] = {
    "pre_norm": PreNormBlock,
    "sandwich": SandwichBlock,
    "parallel": ParallelBlock,
    "post_norm": PostNormBlock,
}


def make_block(spec: BlockSpec, width: int, rope_index: int | None) -> Block:
    return BLOCKS[spec.kind](spec, width, rope_index)
