"""Mixtral: Mistral whose feed-forwards are mixtures of experts."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import expert_counts, num_layers
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import MlpSpec, ModelSpec, MoeSpec, SoftmaxRouting, WeightNames

MIXTRAL_THETA = 1_000_000.0
MIXTRAL_EPS = 1e-5

MIXTRAL_NAMES: WeightNames = {
    **{name: sources for name, sources in LLAMA_NAMES.items() if ".ffn." not in name},
    "layers.*.ffn.router": ("model.layers.*.block_sparse_moe.gate",),
    "layers.*.ffn.experts.up": tuple(f"model.layers.*.block_sparse_moe.experts.#.{part}" for part in ("w1", "w3")),
    "layers.*.ffn.experts.down": ("model.layers.*.block_sparse_moe.experts.#.w2",),
}


@architecture("MixtralForCausalLM", names=MIXTRAL_NAMES)
def mixtral(config: ModelConfig) -> ModelSpec:
    hf, block = config.fields, llama_block(config, theta=MIXTRAL_THETA, eps=MIXTRAL_EPS)
    num_experts, top_k = expert_counts(hf, "num_local_experts")
    expert = MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "silu"))
    moe = MoeSpec(num_experts, top_k, expert, SoftmaxRouting(normalize=True))
    block = replace(block, ffn=moe).with_mixer(window=hf.optional_integer("sliding_window"))
    return llama_model(config, (block,) * num_layers(hf))
