"""Granite 4: Mamba-2 layers with attention between, four multipliers, a shared feed-forward beside experts if any."""

import math

from sirocco.runtime.config import Fields, ModelConfig
from sirocco.runtime.models.hf import expert_counts, head_shape, layer_types, rope_spec
from sirocco.runtime.models.llama import LLAMA_NAMES
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import (
    AttentionSpec,
    BlockSpec,
    FfnSpec,
    MambaSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    TopKRouting,
    WeightNames,
)

MAMBA_TYPES = ("mamba", "linear_attention")  # as published, and as transformers writes it
ATTENTION_TYPES = ("attention", "full_attention")

_MAMBA = "model.layers.*.mamba"
_MOE = "model.layers.*.block_sparse_moe"
GRANITE_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer.in_proj": (f"{_MAMBA}.in_proj",),
    "layers.*.mixer.conv": (f"{_MAMBA}.conv1d",),
    "layers.*.mixer.heads": (_MAMBA,),
    "layers.*.mixer.norm": (f"{_MAMBA}.norm",),
    "layers.*.mixer.out_proj": (f"{_MAMBA}.out_proj",),
    "layers.*.ffn.gate_up": ("model.layers.*.shared_mlp.input_linear",),
    "layers.*.ffn.down": ("model.layers.*.shared_mlp.output_linear",),
    "layers.*.ffn.router": (f"{_MOE}.router.layer",),
    "layers.*.ffn.experts.up": (f"{_MOE}.input_linear",),
    "layers.*.ffn.experts.down": (f"{_MOE}.output_linear",),
    "layers.*.ffn.shared.gate_up": ("model.layers.*.shared_mlp.input_linear",),
    "layers.*.ffn.shared.down": ("model.layers.*.shared_mlp.output_linear",),
}


@architecture("GraniteMoeHybridForCausalLM", names=GRANITE_NAMES)
def granite_moe_hybrid(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    norm = NormSpec(hf.number("rms_norm_eps", 1e-6, minimum=0.0))
    types = layer_types(hf, lambda i: "mamba", MAMBA_TYPES + ATTENTION_TYPES)
    multiplier = hf.number("residual_multiplier", 1.0)
    mixers = {t: _mamba(hf, norm) if t in MAMBA_TYPES else _attention(hf) for t in set(types)}
    ffn = _ffn(hf)
    return ModelSpec(
        vocab_size=config.vocab_size,
        width=hf.integer("hidden_size"),
        layers=tuple(BlockSpec(mixers[t], ffn, norm, residual_multiplier=multiplier) for t in types),
        norm=norm,
        max_model_len=config.max_model_len,
        tied_embeddings=hf.boolean("tie_word_embeddings", False),
        embedding_multiplier=hf.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / hf.number("logits_scaling", 1.0, minimum=1e-6),
    )


def _attention(hf: Fields) -> AttentionSpec:
    num_heads, num_kv_heads, head_dim = head_shape(hf)
    bias = hf.boolean("attention_bias", False)
    has_rope = hf.string("position_embedding_type", "") == "rope"
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=hf.number("attention_multiplier", 1.0),
        rope=rope_spec(hf, head_dim) if has_rope else None,
        qkv_bias=bias,
        out_bias=bias,
    )


def _mamba(hf: Fields, norm: NormSpec) -> MambaSpec:
    if hf.string("hidden_act", "silu") != "silu":
        raise hf.error("hidden_act", "must be silu for Mamba layers")
    inner = hf.integer("mamba_expand", 2) * hf.integer("hidden_size")
    num_heads, num_groups = hf.integer("mamba_n_heads", 128), hf.integer("mamba_n_groups", 1)
    head_dim = inner // num_heads if hf.values.get("mamba_d_head") in (None, "auto") else hf.integer("mamba_d_head")
    if num_heads * head_dim != inner:
        raise hf.error("mamba_n_heads", f"({num_heads}) times mamba_d_head ({head_dim}) is not {inner}")
    if num_heads % num_groups:
        raise hf.error("mamba_n_groups", f"({num_groups}) does not divide mamba_n_heads ({num_heads})")
    min_step, max_step = _time_step_limit(hf)
    return MambaSpec(
        num_heads=num_heads,
        head_dim=head_dim,
        state_size=hf.integer("mamba_d_state", 256),
        num_groups=num_groups,
        conv_width=hf.integer("mamba_d_conv", 4, minimum=2, maximum=64),
        norm=norm,
        conv_bias=hf.boolean("mamba_conv_bias", True),
        bias=hf.boolean("mamba_proj_bias", False),
        min_step=min_step,
        max_step=max_step,
    )


def _time_step_limit(hf: Fields) -> tuple[float, float]:
    match hf.values.get("time_step_limit"):
        case None:
            return 0.0, math.inf
        case [int() | float() as low, int() | float() as high] if 0 <= low < high:
            return float(low), float(high)
        case [int() | float() as low, {"__float__": "Infinity"}] if low >= 0:  # as transformers writes it
            return float(low), math.inf
        case _:
            raise hf.error("time_step_limit", "must be two numbers, the smaller first")


def _ffn(hf: Fields) -> FfnSpec:
    activation = hf.string("hidden_act", "silu")
    shared = MlpSpec(hf.integer("shared_intermediate_size", 1024), activation)
    if hf.integer("num_local_experts", 8, minimum=0) == 0:
        return shared
    num_experts, top_k = expert_counts(hf, "num_local_experts")
    return MoeSpec(num_experts, top_k, MlpSpec(hf.integer("intermediate_size"), activation), TopKRouting(), shared)
