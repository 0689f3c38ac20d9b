"""Phi 1 and 2: one LayerNorm before attention and feed-forward side by side, part of each head turned, biases.

Phi 3 is Llama with fused weights, long rope, and a window where config.json says so.
"""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import head_shape, num_layers, rope_spec
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import AttentionSpec, BlockSpec, MlpSpec, ModelSpec, NormSpec, WeightNames

PHI3_EPS = 1e-5

PHI2_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer.out": ("model.layers.*.self_attn.dense",),
    "layers.*.mixer.q_norm": ("model.layers.*.self_attn.q_layernorm",),
    "layers.*.mixer.k_norm": ("model.layers.*.self_attn.k_layernorm",),
    "layers.*.ffn.up": ("model.layers.*.mlp.fc1",),
    "layers.*.ffn.down": ("model.layers.*.mlp.fc2",),
    "norm": ("model.final_layernorm",),
}

PHI3_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer.qkv": ("model.layers.*.self_attn.qkv_proj",),
    "layers.*.ffn.gate_up": ("model.layers.*.mlp.gate_up_proj",),
}


@architecture("PhiForCausalLM", names=PHI2_NAMES)
def phi2(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    norm = NormSpec(hf.number("layer_norm_eps", 1e-5, minimum=0.0), "layer", bias=True)
    num_heads, num_kv_heads, head_dim = head_shape(hf)
    mixer = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope_spec(hf, head_dim, partial=0.5),
        qk_norm=norm if hf.boolean("qk_layernorm", False) else None,
        qkv_bias=True,
        out_bias=True,
    )
    ffn = MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "gelu_new"), gated=False, bias=True)
    block = BlockSpec(mixer, ffn, norm, kind="parallel")
    return replace(llama_model(config, (block,) * num_layers(hf)), head_bias=True)


@architecture("Phi3ForCausalLM", names=PHI3_NAMES)
def phi3(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    block = llama_block(config, eps=PHI3_EPS).with_mixer(window=hf.optional_integer("sliding_window"))
    return llama_model(config, (block,) * num_layers(hf))
