"""Llama; Mistral, which has a window on every layer; SmolLM3, some of whose layers have no rotary embedding."""

from sirocco.runtime.config import Fields, ModelConfig
from sirocco.runtime.models.hf import (
    DEFAULT_EPS,
    DEFAULT_THETA,
    DEFAULT_WINDOW,
    head_shape,
    layer_types,
    num_layers,
    rope_spec,
)
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import AttentionSpec, BlockSpec, MlpSpec, ModelSpec, NormSpec, WeightNames

SMOLLM3_THETA = 2_000_000.0

LLAMA_NAMES: WeightNames = {
    "embed": ("model.embed_tokens",),
    "layers.*.mixer_norm": ("model.layers.*.input_layernorm",),
    "layers.*.mixer.qkv": tuple(f"model.layers.*.self_attn.{part}_proj" for part in "qkv"),
    "layers.*.mixer.out": ("model.layers.*.self_attn.o_proj",),
    "layers.*.ffn_norm": ("model.layers.*.post_attention_layernorm",),
    "layers.*.ffn.gate_up": ("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"),
    "layers.*.ffn.down": ("model.layers.*.mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}


def llama_block(
    config: ModelConfig,
    layer_type: str = "full_attention",
    theta: float = DEFAULT_THETA,
    eps: float = DEFAULT_EPS,
) -> BlockSpec:
    """A layer of Llama's family; what others change they replace.

    `theta` and `eps` hold where config.json does not give the rotary embedding's base and the norms' epsilon.
    """
    hf = config.fields
    num_heads, num_kv_heads, head_dim = head_shape(hf)
    bias = hf.boolean("attention_bias", False)
    mixer = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope_spec(hf, head_dim, layer_type, theta=theta),
        qkv_bias=bias,
        out_bias=bias,
    )
    ffn = MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "silu"), bias=hf.boolean("mlp_bias", False))
    return BlockSpec(mixer, ffn, NormSpec(hf.number("rms_norm_eps", eps, minimum=0.0)))


def llama_model(config: ModelConfig, layers: tuple[BlockSpec, ...], tied: bool = False) -> ModelSpec:
    """Layers between an embedding and a head that are `tied` where config.json does not say."""
    return ModelSpec(
        vocab_size=config.vocab_size,
        width=config.fields.integer("hidden_size"),
        layers=layers,
        norm=layers[0].norm,
        max_model_len=config.max_model_len,
        tied_embeddings=config.fields.boolean("tie_word_embeddings", tied),
    )


@architecture("LlamaForCausalLM", names=LLAMA_NAMES)
def llama(config: ModelConfig) -> ModelSpec:
    return llama_model(config, (llama_block(config),) * num_layers(config.fields))


@architecture("MistralForCausalLM", names=LLAMA_NAMES)
def mistral(config: ModelConfig) -> ModelSpec:
    hf, block = config.fields, llama_block(config)
    window = hf.nullable_integer("sliding_window", DEFAULT_WINDOW)
    block = block.with_mixer(window=window, qkv_bias=False, out_bias=False)
    return llama_model(config, (block,) * num_layers(hf))


@architecture("SmolLM3ForCausalLM", names=LLAMA_NAMES)
def smollm3(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    window = hf.optional_integer("sliding_window") if hf.boolean("use_sliding_window", False) else None
    turned = _turned_layers(hf)
    types = layer_types(hf, lambda i: "full_attention" if window is None or turned[i] else "sliding_attention")
    windows = {"full_attention": None, "sliding_attention": window}
    block = llama_block(config, theta=SMOLLM3_THETA)
    layers = (
        block.with_mixer(window=windows[layer_type], rope=block.mixer.rope if has_rope else None)
        for layer_type, has_rope in zip(types, turned, strict=True)
    )
    return llama_model(config, tuple(layers), tied=True)


def _turned_layers(hf: Fields) -> tuple[bool, ...]:
    """Which layers have a rotary embedding: all but every `no_rope_layer_interval`th, unless `no_rope_layers` lists
    them (1 where a layer has one)."""
    count, listed = num_layers(hf), hf.integers("no_rope_layers")
    if listed is None:
        interval = hf.integer("no_rope_layer_interval", 4)
        return tuple((i + 1) % interval != 0 for i in range(count))
    if len(listed) < count or any(flag not in (0, 1) for flag in listed):
        raise hf.error("no_rope_layers", f"must be a list of 0 and 1 for each of {count} layers")
    return tuple(bool(flag) for flag in listed[:count])
