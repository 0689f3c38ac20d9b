"""Qwen2 (biases on q, k and v) and Qwen3 (a norm on each head of q and k), both with a window on some layers."""

from collections.abc import Callable
from dataclasses import replace

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import layer_types
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import AttentionSpec, BlockSpec, ModelSpec, WeightNames

QWEN3_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.mixer.k_norm": ("model.layers.*.self_attn.k_norm",),
}


@architecture("Qwen2ForCausalLM", names=LLAMA_NAMES)
def qwen2(config: ModelConfig) -> ModelSpec:
    def mixer(block: BlockSpec) -> AttentionSpec:
        return replace(block.mixer, qkv_bias=True, out_bias=False)

    return llama_model(config, _layers(config, mixer))


@architecture("Qwen3ForCausalLM", names=QWEN3_NAMES)
def qwen3(config: ModelConfig) -> ModelSpec:
    def mixer(block: BlockSpec) -> AttentionSpec:
        return replace(block.mixer, qk_norm=block.norm)

    return llama_model(config, _layers(config, mixer))


def _layers(config: ModelConfig, mixer: Callable[[BlockSpec], AttentionSpec]) -> tuple[BlockSpec, ...]:
    """Llama's layers with this mixer, and with a window where the layer's type asks for one.

    Qwen ignores `sliding_window` unless `use_sliding_window` is set, whatever the types say.
    """
    hf, types = config.fields, layer_types(config.fields)
    window = hf.optional_integer("sliding_window") if hf.boolean("use_sliding_window", False) else None
    windows = {"full_attention": None, "sliding_attention": window}
    blocks = {}
    for layer_type in set(types):
        block = llama_block(config, layer_type)
        blocks[layer_type] = replace(block, mixer=replace(mixer(block), window=windows[layer_type]))
    return tuple(blocks[layer_type] for layer_type in types)
