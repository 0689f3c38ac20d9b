"""GLM 4.5 to 4.7: attention as in Llama, or latent (Flash), with the experts and the routing of DeepSeek V3."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.deepseek import (
    DEEPSEEK_NAMES,
    expert_layers,
    latent_attention,
    sigmoid_routing,
    without_extra_layers,
)
from sirocco.runtime.models.hf import head_shape, rope_spec
from sirocco.runtime.models.llama import llama_block, llama_model
from sirocco.runtime.models.qwen import QWEN3_NAMES
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import BlockSpec, ModelSpec, NormSpec

GLM4_MOE_EPS = 1e-5


@architecture("Glm4MoeForCausalLM", names={**DEEPSEEK_NAMES, **QWEN3_NAMES})
def glm4_moe(config: ModelConfig) -> ModelSpec:
    hf, block = config.fields, llama_block(config, eps=GLM4_MOE_EPS)
    _, _, head_dim = head_shape(hf)
    block = block.with_mixer(
        rope=rope_spec(hf, head_dim, partial=0.5),
        qk_norm=block.norm if hf.boolean("use_qk_norm", False) else None,
        out_bias=False,
    )
    ffns = expert_layers(hf, sigmoid_routing(hf, 1.0), hf.integer("first_k_dense_replace", 1, minimum=0))
    return without_extra_layers(hf, llama_model(config, tuple(replace(block, ffn=ffn) for ffn in ffns)))


@architecture("Glm4MoeLiteForCausalLM", names=DEEPSEEK_NAMES)
def glm4_moe_lite(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    mixer = latent_attention(hf, hf.boolean("rope_interleave", True))
    norm = NormSpec(hf.number("rms_norm_eps", GLM4_MOE_EPS, minimum=0.0))
    kinds = hf.strings("mlp_layer_types") or ("dense",)
    num_dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if "dense" in kinds[num_dense:]:
        raise hf.error("mlp_layer_types", "must list the dense layers first")
    ffns = expert_layers(hf, sigmoid_routing(hf, 1.8), num_dense)
    return without_extra_layers(hf, llama_model(config, tuple(BlockSpec(mixer, ffn, norm) for ffn in ffns)))
