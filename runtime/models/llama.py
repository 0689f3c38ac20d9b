"""Llama, and Mistral, which is Llama with a window on every layer."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import head_shape, num_layers, rope_spec
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import AttentionSpec, BlockSpec, MlpSpec, ModelSpec, NormSpec, WeightNames

MISTRAL_WINDOW = 4096  # where config.json does not mention a window; null means none

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


def llama_block(config: ModelConfig, layer_type: str = "full_attention") -> BlockSpec:
    """A layer of Llama's family; what others change they replace."""
    hf = config.fields
    num_heads, num_kv_heads, head_dim = head_shape(hf)
    bias = hf.boolean("attention_bias", False)
    mixer = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope_spec(hf, head_dim, layer_type),
        qkv_bias=bias,
        out_bias=bias,
    )
    ffn = MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "silu"), bias=hf.boolean("mlp_bias", False))
    return BlockSpec(mixer, ffn, NormSpec(hf.number("rms_norm_eps", 1e-6, minimum=0.0)))


def llama_model(config: ModelConfig, layers: tuple[BlockSpec, ...]) -> ModelSpec:
    """Layers of Llama's family between its embedding and its head."""
    return ModelSpec(
        vocab_size=config.vocab_size,
        width=config.fields.integer("hidden_size"),
        layers=layers,
        norm=layers[0].norm,
        max_model_len=config.max_model_len,
        tied_embeddings=config.fields.boolean("tie_word_embeddings", False),
    )


@architecture("LlamaForCausalLM", names=LLAMA_NAMES)
def llama(config: ModelConfig) -> ModelSpec:
    return llama_model(config, (llama_block(config),) * num_layers(config.fields))


@architecture("MistralForCausalLM", names=LLAMA_NAMES)
def mistral(config: ModelConfig) -> ModelSpec:
    hf, block = config.fields, llama_block(config)
    window = hf.optional_integer("sliding_window") if "sliding_window" in hf else MISTRAL_WINDOW
    block = replace(block, mixer=replace(block.mixer, window=window, qkv_bias=False, out_bias=False))
    return llama_model(config, (block,) * num_layers(hf))
