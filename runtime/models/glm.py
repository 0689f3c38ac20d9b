"""GLM-4 (0414): Llama with norms after too, half of each head turned in neighbouring pairs, gate and up fused."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import head_shape, num_layers, rope_spec
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import ModelSpec, WeightNames

GLM4_EPS = 1.5625e-7

GLM4_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer_post_norm": ("model.layers.*.post_self_attn_layernorm",),
    "layers.*.ffn.gate_up": ("model.layers.*.mlp.gate_up_proj",),
    "layers.*.ffn_post_norm": ("model.layers.*.post_mlp_layernorm",),
}


@architecture("Glm4ForCausalLM", names=GLM4_NAMES)
def glm4(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    _, _, head_dim = head_shape(hf)
    block = replace(llama_block(config, eps=GLM4_EPS), kind="sandwich").with_mixer(
        rope=rope_spec(hf, head_dim, interleaved=True, partial=0.5),
        qkv_bias=hf.boolean("attention_bias", True),
        out_bias=False,
    )
    return llama_model(config, (block,) * num_layers(hf))
