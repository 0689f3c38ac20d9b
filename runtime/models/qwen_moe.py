"""Qwen3-MoE: Qwen3 with mixtures of experts, on some layers or all."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import DEFAULT_WINDOW, expert_counts, num_layers
from sirocco.runtime.models.llama import llama_block, llama_model
from sirocco.runtime.models.qwen import QWEN3_NAMES, qwen3_block
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import MlpSpec, ModelSpec, MoeSpec, SoftmaxRouting, WeightNames

QWEN3_MOE_NAMES: WeightNames = {
    **QWEN3_NAMES,
    "layers.*.ffn.router": ("model.layers.*.mlp.gate",),
    "layers.*.ffn.experts.up": tuple(f"model.layers.*.mlp.experts.#.{part}_proj" for part in ("gate", "up")),
    "layers.*.ffn.experts.down": ("model.layers.*.mlp.experts.#.down_proj",),
}


@architecture("Qwen3MoeForCausalLM", names=QWEN3_MOE_NAMES)
def qwen3_moe(config: ModelConfig) -> ModelSpec:
    hf, dense = config.fields, qwen3_block(llama_block(config))
    if hf.boolean("use_sliding_window", False):
        dense = dense.with_mixer(window=hf.nullable_integer("sliding_window", DEFAULT_WINDOW))
    num_experts, top_k = expert_counts(hf, "num_experts", "num_local_experts")
    expert = MlpSpec(hf.integer("moe_intermediate_size"), hf.string("hidden_act", "silu"))
    routing = SoftmaxRouting(normalize=hf.boolean("norm_topk_prob", False))
    sparse = replace(dense, ffn=MoeSpec(num_experts, top_k, expert, routing))
    every, dense_only = hf.integer("decoder_sparse_step", 1), set(hf.integers("mlp_only_layers") or ())
    is_sparse = ((i + 1) % every == 0 and i not in dense_only for i in range(num_layers(hf)))
    return llama_model(config, tuple(sparse if chosen else dense for chosen in is_sparse))
