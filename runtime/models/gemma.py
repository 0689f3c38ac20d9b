"""Gemma: norms that hold their weight less one, a scaled embedding, GeGLU.

Gemma 2 adds norms after, bounds on scores and logits, and a window on every other layer; Gemma 3 a norm on each head of
q and k, and a rotary embedding per layer type.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sirocco.runtime.config import Fields, ModelConfig
from sirocco.runtime.models.hf import head_shape, layer_types, num_layers, rope_spec
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_block, llama_model
from sirocco.runtime.models.qwen import QWEN3_NAMES
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import BlockSpec, MlpSpec, ModelSpec, RopeSpec

GELU = "gelu_pytorch_tanh"
GEMMA3_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}

SANDWICH_NAMES = {
    "layers.*.mixer_post_norm": ("model.layers.*.post_attention_layernorm",),
    "layers.*.ffn_norm": ("model.layers.*.pre_feedforward_layernorm",),
    "layers.*.ffn_post_norm": ("model.layers.*.post_feedforward_layernorm",),
}


@architecture("GemmaForCausalLM", names=LLAMA_NAMES)
def gemma(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    activation = hf.string("hidden_activation", "") or hf.string("hidden_act", GELU)
    # Early checkpoints say "gelu" in `hidden_act` and mean its approximation.
    block = _block(config, GELU if activation == "gelu" else activation)
    return _model(config, (block,) * num_layers(hf))


@architecture("Gemma2ForCausalLM", names={**LLAMA_NAMES, **SANDWICH_NAMES})
def gemma2(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    block = replace(_block(config, hf.string("hidden_activation", GELU)), kind="sandwich")
    block = block.with_mixer(
        scale=hf.number("query_pre_attn_scalar", 256.0, minimum=1e-6) ** -0.5,
        softcap=_bound(hf, "attn_logit_softcapping", 50.0),
    )
    layers = _windowed(hf, lambda layer_type: block, period=2)
    return replace(_model(config, layers), logit_softcap=_bound(hf, "final_logit_softcapping", 30.0))


@architecture("Gemma3ForCausalLM", names={**QWEN3_NAMES, **SANDWICH_NAMES})
def gemma3(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    block = replace(_block(config, hf.string("hidden_activation", GELU)), kind="sandwich")
    block = block.with_mixer(
        scale=hf.number("query_pre_attn_scalar", 256.0, minimum=1e-6) ** -0.5,
        softcap=_bound(hf, "attn_logit_softcapping", None),
        qk_norm=block.norm,
    )
    layers = _windowed(
        hf,
        lambda layer_type: block.with_mixer(rope=_gemma3_rope(hf, layer_type)),
        period=hf.integer("sliding_window_pattern", 6),
    )
    # Its config counts the stretched context, whatever the scaling.
    length = hf.integer("max_position_embeddings")
    softcap = _bound(hf, "final_logit_softcapping", None)
    return replace(_model(config, layers), logit_softcap=softcap, max_model_len=length)


def _block(config: ModelConfig, activation: str) -> BlockSpec:
    block = llama_block(config)
    ffn = MlpSpec(config.fields.integer("intermediate_size"), activation)
    return replace(block, ffn=ffn, norm=replace(block.norm, unit_offset=True))


def _model(config: ModelConfig, layers: tuple[BlockSpec, ...]) -> ModelSpec:
    model = llama_model(config, layers, tied=True)
    return replace(model, embedding_multiplier=model.width**0.5)


def _windowed(hf: Fields, block: Callable[[str], BlockSpec], period: int) -> tuple[BlockSpec, ...]:
    """Layers by type; unless config.json lists the types, each `period`th layer attends to everything.

    Where attention is bidirectional the window is split over both sides.
    """
    types = layer_types(hf, lambda i: "sliding_attention" if (i + 1) % period else "full_attention")
    window = hf.integer("sliding_window", 4096)
    if hf.boolean("use_bidirectional_attention", False):
        window = window // 2 + 1
    windows = {"full_attention": None, "sliding_attention": window}
    blocks = {layer_type: block(layer_type).with_mixer(window=windows[layer_type]) for layer_type in set(types)}
    return tuple(blocks[layer_type] for layer_type in types)


def _gemma3_rope(hf: Fields, layer_type: str) -> RopeSpec:
    """Settings per layer type, or in the older spelling one set for full attention and a base for windows.

    Where a config has both, `rope_theta` and `rope_scaling` are those of full attention, as in transformers.
    """
    _, _, head_dim = head_shape(hf)
    theta = GEMMA3_THETA[layer_type]
    settings, scaling = hf.object("rope_parameters"), hf.object("rope_scaling")
    if layer_type == "sliding_attention":
        base = hf.number("rope_local_base_freq", theta, minimum=1.001)
        if settings is None:
            return RopeSpec(base, head_dim)
        changed: dict[str, Any] = {"rope_theta": base}
    else:
        own = None if settings is None else settings.object(layer_type)
        changed = {}
        if settings is not None and own is not None and scaling is not None:
            changed = {"rope_parameters": {**settings.values, layer_type: {**own.values, **scaling.values}}}
    return rope_spec(Fields({**hf.values, **changed}, hf.where), head_dim, layer_type, theta=theta)


def _bound(hf: Fields, name: str, default: float | None) -> float | None:
    """A soft cap: null means none, `default` where the field is absent."""
    return hf.optional_number(name, minimum=1e-6) if name in hf else default
