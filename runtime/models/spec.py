"""What a decoder is made of, as data. An architecture is a function from `config.json` to a `ModelSpec`.

Nothing here imports torch. A mechanism (attention, feed-forward) is one spec class, and a layer is a choice of them, so
hybrids, alternating windows and dense-first stacks are tuples of blocks and never a question about a name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from sirocco.runtime.models.cache_spec import CacheSpec, KvCacheSpec, LatentCacheSpec, StateCacheSpec, StateTensor

# What checkpoints call the weights: a module path of the decoder, `*` for a layer's number, to the path or paths in the
# checkpoint, `#` for an expert's number, fused in this order.
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


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """A base that grows with the sequence once it is longer than `original_max_len` (dynamic NTK)."""

    factor: float
    original_max_len: int

    def regime(self, length: int) -> int:
        return length if length > self.original_max_len else 0


@dataclass(frozen=True, slots=True)
class LongropeScaling:
    """Wavelengths times a factor for each, one set up to `original_max_len` tokens and one beyond (arXiv:2402.13753).

    Each set has its own factor on cos and sin.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_len: int
    short_attention_factor: float
    long_attention_factor: float

    def regime(self, length: int) -> int:
        return int(length > self.original_max_len)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongropeScaling
LENGTH_DEPENDENT = (DynamicScaling, LongropeScaling)


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """A rotary embedding of the first `rotary_dim` dimensions of a head, in half or interleaved layout."""

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A norm over the last axis: root mean square, or mean and variance with an optional bias.

    With `unit_offset` checkpoints hold the weight less one.
    """

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False
    unit_offset: bool = False


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention. `scale` multiplies the scores, `window` counts the keys seen including the query's own,
    `softcap` bounds scores by tanh, `sinks` add a learned logit per head to the softmax's denominator, `qk_norm`
    normalises each head of q and k before the rotary embedding. Not `causal`, it sees `window` keys on either side,
    its own counted in both, and stores nothing."""

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
    sinks: bool = False
    causal: bool = True

    @property
    def cache(self) -> CacheSpec:
        return KvCacheSpec(self.num_kv_heads, self.head_dim, self.window) if self.causal else CacheSpec()


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A feed-forward of width `hidden`: `down(act(gate) * up)` when gated, `down(act(up))` otherwise."""

    hidden: int
    activation: str
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (arXiv:2405.04434): keys and values of all heads from one latent of `rank` per token.

    A head's query and key have `nope_dim` dimensions from the latents and `rope_dim` turned ones, of which the key's
    are shared by all heads; its value has `v_dim`. Queries go through a latent of `q_rank` too, unless that is None.
    `bias` is on the projections to the latents and on the output; `norm` is over each latent.
    """

    num_heads: int
    q_rank: int | None
    rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float
    rope: RopeSpec
    norm: NormSpec
    bias: bool = False

    @property
    def cache(self) -> CacheSpec:
        return LatentCacheSpec(self.rank, self.rope_dim)


@dataclass(frozen=True, slots=True)
class MambaSpec:
    """A Mamba-2 mixer (arXiv:2405.21060): a causal convolution over `conv_width` tokens, then a state of
    `head_dim` x `state_size` per head, whose inputs and outputs the heads of a group share.

    Time steps are clamped to `min_step` and `max_step`; `norm` is over each group of the gated output.
    """

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_width: int
    norm: NormSpec
    conv_bias: bool = True
    bias: bool = False
    min_step: float = 0.0
    max_step: float = math.inf

    rope: ClassVar[None] = None

    @property
    def inner(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def conv_dim(self) -> int:
        """Channels that are convolved: the heads' inputs, and the groups' input and output vectors."""
        return self.inner + 2 * self.num_groups * self.state_size

    @property
    def cache(self) -> CacheSpec:
        ssm = StateTensor((self.num_heads, self.head_dim, self.state_size), float32=True)
        return StateCacheSpec((("conv", StateTensor((self.conv_dim, self.conv_width - 1))), ("ssm", ssm)))


@dataclass(frozen=True, slots=True)
class SoftmaxRouting:
    """Softmax over all experts, then the best of the `top_groups` best groups; `normalize` makes weights sum to one."""

    normalize: bool = False
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class TopKRouting:
    """The best experts, then softmax over those; `bias` is added to the scores."""

    bias: bool = False


@dataclass(frozen=True, slots=True)
class SigmoidRouting:
    """Sigmoid scores, with a learned correction that takes part in choosing alone, within the best groups."""

    normalize: bool = True
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class SparseMixerRouting:
    """Two experts, each weighed among those whose scores are within 2 `jitter` of its own."""

    jitter: float


RoutingSpec = SoftmaxRouting | TopKRouting | SigmoidRouting | SparseMixerRouting


@dataclass(frozen=True, slots=True)
class SwigluClamp:
    """`(up + 1) * gate * sigmoid(alpha * gate)` with gate bounded above and up on both sides by `limit` (GPT-OSS)."""

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """`num_experts` feed-forwards, of which each token passes `top_k`, and one `shared` by all tokens.

    `layout` is how checkpoints hold the experts: as `rows` of outputs, as `columns` with gate and up alternating, or as
    rows in `mxfp4` blocks with gate and up alternating.
    """

    num_experts: int
    top_k: int
    expert: MlpSpec
    routing: RoutingSpec
    shared: MlpSpec | None = None
    clamp: SwigluClamp | None = None
    layout: Literal["rows", "columns", "mxfp4"] = "rows"


# A mechanism is a spec class here, a module, and an entry in `block.py` that leads from one to the other.
MixerSpec = AttentionSpec | MlaSpec | MambaSpec
FfnSpec = MlpSpec | MoeSpec

BlockKind = Literal["pre_norm", "sandwich", "parallel", "post_norm"]


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One layer: how mixer and feed-forward stand to the residual stream and its norms.

    `pre_norm`: each reads a norm of the stream and adds to it. `sandwich`: what it adds is normed too. `parallel`: both
    read one norm and add at once. `post_norm`: each reads the stream, which is normed after every addition.
    `residual_multiplier` scales what is added.
    """

    mixer: MixerSpec
    ffn: FfnSpec
    norm: NormSpec
    kind: BlockKind = "pre_norm"
    residual_multiplier: float = 1.0

    def with_mixer(self, **changes: Any) -> "BlockSpec":
        """This block with these fields of its mixer replaced."""
        return replace(self, mixer=replace(self.mixer, **changes))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder: token embedding, `layers` in order, `norm`, output head (the embedding again when tied).

    Embeddings are multiplied by `embedding_multiplier`, logits by `logit_scale` and then bounded by tanh to
    `logit_softcap`. Without `has_head` the hidden states are all there is. Weights whose names begin like one of
    `unused_weights` may be in checkpoints.
    """

    vocab_size: int
    width: int
    layers: tuple[BlockSpec, ...]
    norm: NormSpec
    max_model_len: int
    tied_embeddings: bool = False
    has_head: bool = True
    head_bias: bool = False
    embedding_multiplier: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    unused_weights: tuple[str, ...] = ()

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """What each layer stores, in layer order."""
        return tuple(block.mixer.cache for block in self.layers)

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The distinct rotary embeddings of its layers."""
        return tuple(dict.fromkeys(block.mixer.rope for block in self.layers if block.mixer.rope is not None))

    def cache_bytes_per_token(self, dtype_size: int) -> int:
        """Bytes that one token occupies in the caches of all layers."""
        return sum(cache.bytes_per_token(dtype_size) for cache in self.caches)

    def cache_bytes_per_request(self, dtype_size: int) -> int:
        """Bytes of recurrent state that one request occupies, whatever its length."""
        return sum(cache.bytes_per_request(dtype_size) for cache in self.caches)


def rope_regime(spec: ModelSpec, length: int) -> int:
    """Which tables of a length-dependent rotary embedding serve a request of `length` tokens; 0 where none depends.

    States computed under one regime mean nothing under another: a request keeps the regime of its length after the
    prompt, cached blocks are shared within a regime only, and a request that outgrows its own (`regime_limit`) is
    computed anew.
    """
    scalings = [rope.scaling for rope in spec.ropes]
    return max((s.regime(length) for s in scalings if isinstance(s, LENGTH_DEPENDENT)), default=0)


def regime_limit(spec: ModelSpec, regime: int) -> int | None:
    """Up to how many tokens a request may keep its regime; None where it may keep it for good.

    Dynamic NTK would give each length frequencies of its own; a request keeps its own until it is twice as long.
    """
    limits = [_regime_limit(rope.scaling, regime) for rope in spec.ropes]
    return min((limit for limit in limits if limit is not None), default=None)


def _regime_limit(scaling: RopeScaling | None, regime: int) -> int | None:
    match scaling:
        case DynamicScaling() | LongropeScaling() if regime == 0:
            return scaling.original_max_len
        case DynamicScaling():
            return 2 * regime
        case _:
            return None
