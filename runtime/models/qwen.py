"""Qwen2 (biases on q, k and v) and Qwen3 (a norm on each head of q and k), both with a window on some layers."""

from collections.abc import Callable

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.models.hf import DEFAULT_WINDOW, layer_types
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import BlockSpec, ModelSpec, WeightNames

QWEN3_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.mixer.k_norm": ("model.layers.*.self_attn.k_norm",),
}


@architecture("Qwen2ForCausalLM", names=LLAMA_NAMES)
def qwen2(config: ModelConfig) -> ModelSpec:
    def adapt(block: BlockSpec) -> BlockSpec:
        return block.with_mixer(qkv_bias=True, out_bias=False)

    return llama_model(config, qwen_layers(config, adapt))


@architecture("Qwen3ForCausalLM", names=QWEN3_NAMES)
def qwen3(config: ModelConfig) -> ModelSpec:
    return llama_model(config, qwen_layers(config, qwen3_block))


def qwen3_block(block: BlockSpec) -> BlockSpec:
    return block.with_mixer(qk_norm=block.norm)


def qwen_layers(config: ModelConfig, adapt: Callable[[BlockSpec], BlockSpec]) -> tuple[BlockSpec, ...]:
    """Llama's layers, adapted, and with a window where the layer's type asks for one.

    Qwen ignores `sliding_window` unless `use_sliding_window` is set, whatever the types say.
    """
    hf = config.fields
    window = hf.nullable_integer("sliding_window", DEFAULT_WINDOW) if hf.boolean("use_sliding_window", False) else None
    first = hf.integer("max_window_layers", 28, minimum=0)  # below it, layers attend to everything
    types = layer_types(hf, lambda i: "full_attention" if window is None or i < first else "sliding_attention")
    windows = {"full_attention": None, "sliding_attention": window}
    blocks = {t: adapt(llama_block(config, t)).with_mixer(window=windows[t]) for t in set(types)}
    return tuple(blocks[layer_type] for layer_type in types)
