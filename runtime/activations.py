"""How much memory a step takes beside weights and caches: what one layer holds at once, and the logits."""

from sirocco.runtime.models.spec import (
    AttentionSpec,
    FfnSpec,
    MambaSpec,
    MixerSpec,
    MlaSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
)

_STREAM = 4  # tensors of the model's width: the residual stream, its norm, what is added, and a result
_LOGITS_BYTES = 12  # of each logit beside itself: in float32, as probabilities, and sorted


def step_bytes(spec: ModelSpec, num_tokens: int, num_rows: int, itemsize: int) -> int:
    """About the most bytes that a step of `num_tokens` holds, of which `num_rows` are sampled from."""
    widest = max((max(_mixer(block.mixer), _ffn(block.ffn, spec.width)) for block in spec.layers), default=0)
    layer = num_tokens * (_STREAM * spec.width + widest) * itemsize
    return layer + num_rows * spec.vocab_size * (itemsize + _LOGITS_BYTES)


def _ffn(ffn: FfnSpec, width: int) -> int:
    """Numbers of a token: what the first matrix makes, the product of its halves, and for experts rows to and fro."""
    match ffn:
        case MlpSpec():
            return (3 if ffn.gated else 2) * ffn.hidden
        case MoeSpec():
            shared = 0 if ffn.shared is None else _ffn(ffn.shared, width)
            return ffn.top_k * (_ffn(ffn.expert, width) + 3 * width) + shared


def _mixer(mixer: MixerSpec) -> int:
    """Numbers of a token: projections, turned queries and keys, and the mixed values."""
    match mixer:
        case AttentionSpec():
            heads = mixer.num_heads + 2 * mixer.num_kv_heads
            return (2 * heads + mixer.num_heads) * mixer.head_dim
        case MlaSpec():
            latent = 2 * (mixer.rank + mixer.rope_dim) + mixer.rank
            return mixer.num_heads * (latent + 2 * (mixer.nope_dim + mixer.rope_dim) + 2 * mixer.v_dim)
        case MambaSpec():
            return 4 * (mixer.inner + mixer.conv_dim)
