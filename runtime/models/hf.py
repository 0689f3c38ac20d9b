"""Parts of a spec that most families write the same way in `config.json`."""

import math
from collections.abc import Callable, Collection

from sirocco.runtime.config import Fields, rope_factor, rope_parameters
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

DEFAULT_THETA = 10_000.0
DEFAULT_EPS = 1e-6  # of norms
DEFAULT_WINDOW = 4096  # where config.json does not mention a window; null means none
MAX_LAYERS = 1000
MAX_EXPERTS = 100_000
MAX_ROTARY_DIM = 1 << 16
MAX_MSCALE = 100.0
ATTENTION_TYPES = ("full_attention", "sliding_attention")


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


def expert_counts(fields: Fields, *names: str) -> tuple[int, int]:
    """The number of experts, under the first of these names that the config has, and of those that a token passes."""
    name = next((name for name in names if name in fields), names[0])
    num_experts, top_k = fields.integer(name, maximum=MAX_EXPERTS), fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise fields.error("num_experts_per_tok", f"({top_k}) is more than {name} ({num_experts})")
    return num_experts, top_k


def layer_types(
    fields: Fields, default: Callable[[int], str], known: Collection[str] = ATTENTION_TYPES
) -> tuple[str, ...]:
    """The type of each layer; where config.json does not list them, `default` says it of a layer's number."""
    count = num_layers(fields)
    types = fields.strings("layer_types")
    if types is None:
        return tuple(default(i) for i in range(count))
    if len(types) != count:
        raise fields.error("layer_types", f"has {len(types)} entries for {count} layers")
    for layer_type in types:
        if layer_type not in known:
            raise fields.error("layer_types", f"holds {layer_type!r}, which this architecture does not know")
    return types


def rope_spec(
    fields: Fields,
    head_dim: int,
    layer_type: str = "full_attention",
    interleaved: bool = False,
    theta: float = DEFAULT_THETA,
    partial: float = 1.0,
) -> RopeSpec:
    """The rotary embedding, in either spelling of its settings, of layers of this type.

    `theta` and `partial` hold where config.json gives no base and no share of a head that is turned.
    """
    rope = rope_parameters(fields, layer_type)
    rotary_dim = int(head_dim * rope.number("partial_rotary_factor", partial, minimum=0.0))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise rope.error("partial_rotary_factor", f"turns {rotary_dim} of {head_dim} dimensions of a head")
    if rotary_dim > MAX_ROTARY_DIM:  # its table is made before a weight has been seen
        raise ModelLoadError(f"{fields.where}: a head with {rotary_dim} dimensions to turn is too large")
    base = rope.number("rope_theta", theta)
    if base <= 1:
        raise rope.error("rope_theta", f"must be greater than 1, got {base:g}")
    name = rope.string("rope_type")
    if name not in _SCALINGS:
        raise rope.error("rope_type", f"{name!r} is not supported; known are {', '.join(_SCALINGS)}")
    return RopeSpec(base, rotary_dim, interleaved, _SCALINGS[name](fields, rope, rotary_dim))


def _linear(fields: Fields, rope: Fields, rotary_dim: int) -> LinearScaling:
    return LinearScaling(_factor(rope))


def _llama3(fields: Fields, rope: Fields, rotary_dim: int) -> Llama3Scaling:
    low, high = (rope.number(f"{name}_freq_factor", minimum=1e-6) for name in ("low", "high"))
    if low >= high:
        raise rope.error("high_freq_factor", f"must be greater than low_freq_factor, got {high:g} and {low:g}")
    return Llama3Scaling(_factor(rope), low, high, rope.integer("original_max_position_embeddings"))


def _dynamic(fields: Fields, rope: Fields, rotary_dim: int) -> DynamicScaling:
    if rotary_dim == 2:
        raise rope.error("rope_type", "'dynamic' needs more than 2 dimensions to turn")
    return DynamicScaling(_factor(rope), fields.integer("max_position_embeddings"))


def _longrope(fields: Fields, rope: Fields, rotary_dim: int) -> LongropeScaling:
    original = rope.integer("original_max_position_embeddings", minimum=2)
    factor = rope_factor(rope) or fields.integer("max_position_embeddings") / original
    attention_factor = rope.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongropeScaling(
        short_factors=_numbers(rope, "short_factor", rotary_dim // 2),
        long_factors=_numbers(rope, "long_factor", rotary_dim // 2),
        original_max_len=original,
        short_attention_factor=rope.number("short_mscale", attention_factor),
        long_attention_factor=rope.number("long_mscale", attention_factor),
    )


def _numbers(fields: Fields, name: str, count: int) -> tuple[float, ...]:
    values = fields.values.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise fields.error(name, f"must be a list of {count} numbers")
    return tuple(Fields({name: value}, fields.where).number(name, minimum=1e-6) for value in values)


def _yarn(fields: Fields, rope: Fields, rotary_dim: int) -> YarnScaling:
    original = rope.integer("original_max_position_embeddings")
    factor = rope_factor(rope)
    if factor is None:
        factor = fields.integer("max_position_embeddings") / original
    attention_factor = rope.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(
            factor, rope.number("mscale", 0.0, 0.0, MAX_MSCALE), rope.number("mscale_all_dim", 0.0, 0.0, MAX_MSCALE)
        )
    return YarnScaling(
        factor=factor,
        original_max_len=original,
        attention_factor=attention_factor,
        beta_fast=_rotations(rope, "beta_fast", 32.0),
        beta_slow=_rotations(rope, "beta_slow", 1.0),
        truncate=rope.boolean("truncate", True),
    )


def _rotations(rope: Fields, name: str, default: float) -> float:
    """A number of rotations within the original context; 0 counts as missing."""
    return rope.number(name, default, minimum=1e-3, maximum=1e6) if rope.values.get(name) else default


def _yarn_attention_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """The paper's temperature, or DeepSeek's quotient of two of them."""
    if mscale and mscale_all_dim:
        return yarn_temperature(factor, mscale) / yarn_temperature(factor, mscale_all_dim)
    return yarn_temperature(factor, 1.0)


def yarn_temperature(factor: float, weight: float) -> float:
    """By how much attention sharpens where the context is stretched by `factor`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factor(rope: Fields) -> float:
    factor = rope_factor(rope)
    if factor is None:
        raise rope.error("factor", "is missing")
    return factor


_SCALINGS: dict[str, Callable[[Fields, Fields, int], RopeScaling | None]] = {
    "default": lambda fields, rope, rotary_dim: None,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _dynamic,
    "longrope": _longrope,
    "su": _longrope,
}
