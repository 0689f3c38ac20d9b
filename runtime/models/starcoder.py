"""Starcoder 2: Llama with LayerNorm, a feed-forward without gate, biases, and a window on every layer."""

from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import num_layers
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import MlpSpec, ModelSpec, NormSpec, WeightNames

STARCODER2_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.ffn.up": ("model.layers.*.mlp.c_fc",),
    "layers.*.ffn.down": ("model.layers.*.mlp.c_proj",),
}


@architecture("Starcoder2ForCausalLM", names=STARCODER2_NAMES)
def starcoder2(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    bias = hf.boolean("use_bias", True)
    activation = hf.string("hidden_act", "gelu_pytorch_tanh")
    block = replace(
        llama_block(config),
        ffn=MlpSpec(hf.integer("intermediate_size"), activation, gated=False, bias=bias),
        norm=NormSpec(hf.number("norm_epsilon", 1e-5, minimum=0.0), "layer", bias=True),
    ).with_mixer(window=hf.optional_integer("sliding_window"), qkv_bias=bias, out_bias=bias)
    return llama_model(config, (block,) * num_layers(hf), tied=True)
