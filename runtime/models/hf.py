"""Parts of a spec that most families write the same way in `config.json`."""

import math

from sirocco.runtime.config import Fields, rope_factor, rope_parameters
from sirocco.runtime.models.spec import LinearScaling, Llama3Scaling, RopeScaling, RopeSpec, YarnScaling

DEFAULT_THETA = 10_000.0
MAX_LAYERS = 10_000


def head_shape(fields: Fields) -> tuple[int, int, int]:
    """The numbers of query heads and of KV heads, and the size of a head."""
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"({num_kv_heads}) does not divide num_attention_heads ({num_heads})")
    head_dim = fields.optional_integer("head_dim")
    if head_dim is None:
        head_dim, rest = divmod(fields.integer("hidden_size"), num_heads)
        if rest:
            raise fields.error("hidden_size", f"is not a multiple of num_attention_heads ({num_heads})")
    return num_heads, num_kv_heads, head_dim


def num_layers(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", maximum=MAX_LAYERS)


def layer_types(fields: Fields) -> tuple[str, ...]:
    """The attention of each layer, from `layer_types` or from Qwen's window settings: the layers below
    `max_window_layers` attend to everything. Without `use_sliding_window` no layer has a window."""
    count = num_layers(fields)
    types = fields.strings("layer_types")
    if types is None:
        windowed = fields.boolean("use_sliding_window", False) and fields.optional_integer("sliding_window") is not None
        first = fields.integer("max_window_layers", 28, minimum=0) if windowed else count
        return tuple("full_attention" if i < first else "sliding_attention" for i in range(count))
    if len(types) != count:
        raise fields.error("layer_types", f"has {len(types)} entries for {count} layers")
    for layer_type in types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise fields.error("layer_types", f"holds {layer_type!r}, which this architecture does not know")
    return types


def rope_spec(fields: Fields, head_dim: int, layer_type: str = "full_attention", interleaved: bool = False) -> RopeSpec:
    """The rotary embedding, in either spelling of its settings, of layers of this type."""
    rope = rope_parameters(fields, layer_type)
    rotary_dim = int(head_dim * rope.number("partial_rotary_factor", 1.0, minimum=0.0))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise rope.error("partial_rotary_factor", f"turns {rotary_dim} of {head_dim} dimensions of a head")
    theta = rope.number("rope_theta", DEFAULT_THETA)
    if theta <= 1:
        raise rope.error("rope_theta", f"must be greater than 1, got {theta:g}")
    return RopeSpec(theta, rotary_dim, interleaved, _scaling(fields, rope))


def _scaling(fields: Fields, rope: Fields) -> RopeScaling | None:
    match rope.string("rope_type"):
        case "default":
            return None
        case "linear":
            return LinearScaling(_factor(rope))
        case "llama3":
            return Llama3Scaling(
                factor=_factor(rope),
                low_freq_factor=rope.number("low_freq_factor", minimum=1e-6),
                high_freq_factor=rope.number("high_freq_factor", minimum=1e-6),
                original_max_len=rope.integer("original_max_position_embeddings"),
            )
        case "yarn":
            return _yarn(fields, rope)
        case other:
            raise rope.error("rope_type", f"{other!r} is not supported; known are default, linear, llama3 and yarn")


def _yarn(fields: Fields, rope: Fields) -> YarnScaling:
    original = rope.integer("original_max_position_embeddings")
    factor = rope_factor(rope)
    if factor is None:
        factor = fields.integer("max_position_embeddings") / original
    attention_factor = rope.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(
            factor, rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
        )
    return YarnScaling(
        factor=factor,
        original_max_len=original,
        attention_factor=attention_factor,
        beta_fast=rope.number("beta_fast", 32.0) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0) or 1.0,
        truncate=rope.boolean("truncate", True),
    )


def _yarn_attention_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """The paper's temperature, or DeepSeek's quotient of two of them."""

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return temperature(mscale) / temperature(mscale_all_dim)
    return temperature(1.0)


def _factor(rope: Fields) -> float:
    factor = rope_factor(rope)
    if factor is None:
        raise rope.error("factor", "is missing")
    return factor
