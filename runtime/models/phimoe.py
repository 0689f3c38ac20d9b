"""Phi-3.5-MoE: Mixtral with LayerNorm, long rope and sparse-mixer routing."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import expert_counts, num_layers
from sirocco.runtime.models.llama import llama_block, llama_model
from sirocco.runtime.models.mixtral import MIXTRAL_NAMES
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import MlpSpec, ModelSpec, MoeSpec, NormSpec, SparseMixerRouting

PHIMOE_THETA = 1_000_000.0


@architecture("PhiMoEForCausalLM", "PhimoeForCausalLM", names=MIXTRAL_NAMES)
def phimoe(config: ModelConfig) -> ModelSpec:
    hf, block = config.fields, llama_block(config, theta=PHIMOE_THETA)
    num_experts, top_k = expert_counts(hf, "num_local_experts", "num_experts")
    if top_k != 2:
        raise hf.error("num_experts_per_tok", f"must be 2 for sparse-mixer routing, got {top_k}")
    expert = MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "silu"))
    routing = SparseMixerRouting(hf.number("router_jitter_noise", 0.01, minimum=0.0))
    norm = NormSpec(hf.number("rms_norm_eps", 1e-5, minimum=0.0), "layer", bias=True)
    block = replace(block, ffn=MoeSpec(num_experts, top_k, expert, routing), norm=norm)
    block = block.with_mixer(window=hf.optional_integer("sliding_window"))
    model = llama_model(config, (block,) * num_layers(hf))
    return replace(model, head_bias=hf.boolean("lm_head_bias", False))
