"""Encoders of BERT's family: learned positions, attention on either side, a norm after each addition, no output head.

RoBERTa's positions begin after its padding token's id; MPNet adds a learned bias by distance to the scores; DistilBERT
has no token types and names of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sirocco.kernels.attention import AttentionBatch
from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.block import make_block
from sirocco.runtime.models.decoder import Embedding
from sirocco.runtime.models.hf import head_shape, num_layers
from sirocco.runtime.models.norm import make_norm
from sirocco.runtime.models.spec import AttentionSpec, BlockSpec, MlpSpec, NormSpec, WeightNames
from sirocco.runtime.models.step import Step
from sirocco.runtime.weights import loadable_modules

DISTANCE_BUCKETS = 32  # of MPNet, half of them for each direction
MAX_DISTANCE = 128  # beyond it the last bucket holds for all

BERT_NAMES: WeightNames = {
    "embed": ("embeddings.word_embeddings",),
    "positions": ("embeddings.position_embeddings",),
    "types": ("embeddings.token_type_embeddings",),
    "norm": ("embeddings.LayerNorm",),
    "layers.*.mixer.qkv": tuple(f"encoder.layer.*.attention.self.{part}" for part in ("query", "key", "value")),
    "layers.*.mixer.out": ("encoder.layer.*.attention.output.dense",),
    "layers.*.mixer_norm": ("encoder.layer.*.attention.output.LayerNorm",),
    "layers.*.ffn.up": ("encoder.layer.*.intermediate.dense",),
    "layers.*.ffn.down": ("encoder.layer.*.output.dense",),
    "layers.*.ffn_norm": ("encoder.layer.*.output.LayerNorm",),
}
MPNET_NAMES: WeightNames = {
    **BERT_NAMES,
    "distances": ("encoder.relative_attention_bias",),
    "layers.*.mixer.qkv": tuple(f"encoder.layer.*.attention.attn.{part}" for part in "qkv"),
    "layers.*.mixer.out": ("encoder.layer.*.attention.attn.o",),
    "layers.*.mixer_norm": ("encoder.layer.*.attention.LayerNorm",),
}
DISTILBERT_NAMES: WeightNames = {
    **BERT_NAMES,
    "layers.*.mixer.qkv": tuple(f"transformer.layer.*.attention.{part}_lin" for part in "qkv"),
    "layers.*.mixer.out": ("transformer.layer.*.attention.out_lin",),
    "layers.*.mixer_norm": ("transformer.layer.*.sa_layer_norm",),
    "layers.*.ffn.up": ("transformer.layer.*.ffn.lin1",),
    "layers.*.ffn.down": ("transformer.layer.*.ffn.lin2",),
    "layers.*.ffn_norm": ("transformer.layer.*.output_layer_norm",),
}
# What BERT calls the fields of DistilBERT's config.
DISTILBERT_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """An encoder: embeddings of tokens, positions and types, their sum normed, then `layers`.

    Token 0 of a sequence has position `first_position`, which follows the padding token's id. `distance_buckets` is the
    number of biases per head that distances share, for each sign half of them.
    """

    vocab_size: int
    width: int
    layers: tuple[BlockSpec, ...]
    norm: NormSpec
    num_positions: int
    first_position: int = 0
    num_types: int = 0
    distance_buckets: int = 0

    @property
    def max_model_len(self) -> int:
        return self.num_positions - self.first_position

    @property
    def num_heads(self) -> int:
        mixer = self.layers[0].mixer
        assert isinstance(mixer, AttentionSpec)
        return mixer.num_heads


class Encoder(nn.Module):
    """An encoder as its spec says. It takes no memory for weights until they are assigned."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(spec.vocab_size, spec.width)
        self.positions = Embedding(spec.num_positions, spec.width)
        self.types = Embedding(spec.num_types, spec.width) if spec.num_types else None
        self.norm = make_norm(spec.norm, spec.width)
        self.distances = Embedding(spec.distance_buckets, spec.num_heads) if spec.distance_buckets else None
        self.layers = nn.ModuleList(make_block(block, spec.width, None) for block in spec.layers)

    @property
    def num_bytes(self) -> int:
        """Memory that the weights occupy."""
        return sum(module.num_bytes for _, module in loadable_modules(self))

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, positions: Tensor, batch: AttentionBatch) -> Tensor:
        """Hidden states [T, C] of whole sequences side by side, token_ids and positions [T] counted from 0."""
        x: Tensor = self.embed(token_ids) + self.positions(self._places(token_ids, positions))
        if self.types is not None:
            x += self.types.weight[0]
        x, _ = self.norm(x, None)
        bias = None if self.distances is None else distance_bias(self.distances.weight)
        step = Step(batch, positions, (), distance_bias=bias)
        for layer in self.layers:
            x, _ = layer(x, None, step, None)
        return x

    def _places(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Rows of the table of positions [T]. A padding token within a text is not counted: its is before the first."""
        first = self.spec.first_position
        if first == 0:
            return positions
        counted = token_ids != first - 1
        before = counted.cumsum(0) - counted.long()
        starts = torch.arange(len(positions), device=positions.device) - positions
        return torch.where(counted, before - before[starts], -1) + first


def distance_bias(buckets: Tensor) -> Tensor:
    """The bias [H, 2 R + 1] of key at distance -R … R after the query, from the buckets' [N, H] (arXiv:1910.10683)."""
    distance = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1, device=buckets.device)
    half = len(buckets) // 2
    exact = half // 2
    steps = (distance.abs().clamp_min(1) / exact).log() / math.log(MAX_DISTANCE / exact) * (half - exact)
    bucket = torch.where(distance.abs() < exact, distance.abs(), (exact + steps.long()).clamp_max(half - 1))
    bias: Tensor = buckets[bucket + half * (distance > 0)].T.contiguous()
    return bias


def bert(config: ModelConfig) -> EncoderSpec:
    hf = config.fields
    kind = hf.string("position_embedding_type", "absolute")
    if kind != "absolute":
        raise hf.error("position_embedding_type", f"{kind!r} is not supported")
    num_heads, num_kv_heads, head_dim = head_shape(hf)
    mixer = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=None,
        qkv_bias=True,
        out_bias=True,
        causal=False,
    )
    ffn = MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "gelu"), gated=False, bias=True)
    norm = NormSpec(hf.number("layer_norm_eps", 1e-12, minimum=0.0), "layer", bias=True)
    return EncoderSpec(
        vocab_size=config.vocab_size,
        width=hf.integer("hidden_size"),
        layers=(BlockSpec(mixer, ffn, norm, kind="post_norm"),) * num_layers(hf),
        norm=norm,
        num_positions=hf.integer("max_position_embeddings"),
        num_types=hf.integer("type_vocab_size", 2, minimum=0),
    )


def roberta(config: ModelConfig) -> EncoderSpec:
    hf, spec = config.fields, bert(config)
    first = hf.integer("pad_token_id", 1, minimum=0) + 1
    if first >= spec.num_positions:
        raise hf.error("pad_token_id", f"leaves none of {spec.num_positions} positions")
    return replace(spec, first_position=first)


def mpnet(config: ModelConfig) -> EncoderSpec:
    return replace(roberta(config), num_types=0, distance_buckets=DISTANCE_BUCKETS)


def distilbert(config: ModelConfig) -> EncoderSpec:
    renamed = {name: config.hf.get(own) for name, own in DISTILBERT_FIELDS.items()}
    return replace(bert(replace(config, hf=config.hf | renamed)), num_types=0)


@dataclass(frozen=True, slots=True)
class EncoderArchitecture:
    """How one class of encoders becomes a spec, and what its checkpoints call the weights."""

    build: Callable[[ModelConfig], EncoderSpec]
    names: WeightNames


ENCODERS = {
    "BertModel": EncoderArchitecture(bert, BERT_NAMES),
    "RobertaModel": EncoderArchitecture(roberta, BERT_NAMES),
    "XLMRobertaModel": EncoderArchitecture(roberta, BERT_NAMES),
    "MPNetModel": EncoderArchitecture(mpnet, MPNET_NAMES),
    "DistilBertModel": EncoderArchitecture(distilbert, DISTILBERT_NAMES),
}
