"""GPT-OSS: attention sinks, a window on every other layer, experts with a clamped SwiGLU, in MXFP4 or expanded."""

from dataclasses import replace

from sirocco.runtime.config import Fields, ModelConfig, rope_settings
from sirocco.runtime.models.hf import expert_counts, head_shape, layer_types, rope_spec
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import (
    AttentionSpec,
    BlockSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    SwigluClamp,
    TopKRouting,
    WeightNames,
)

GPT_OSS_THETA = 150_000.0
GPT_OSS_SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

GPT_OSS_NAMES: WeightNames = {
    **{name: sources for name, sources in LLAMA_NAMES.items() if ".ffn." not in name},
    "layers.*.mixer.sinks": ("model.layers.*.self_attn",),
    "layers.*.ffn.router": ("model.layers.*.mlp.router",),
    "layers.*.ffn.experts": ("model.layers.*.mlp.experts",),
}


@architecture("GptOssForCausalLM", names=GPT_OSS_NAMES, formats=("mxfp4",))
def gpt_oss(config: ModelConfig) -> ModelSpec:
    if rope_settings(config.fields) is None:
        config = replace(config, hf=config.hf | {"rope_scaling": GPT_OSS_SCALING})
    hf = config.fields
    types = layer_types(hf, lambda i: "full_attention" if i % 2 else "sliding_attention")
    ffn, norm = _experts(hf), NormSpec(hf.number("rms_norm_eps", 1e-5, minimum=0.0))
    return llama_model(config, tuple(BlockSpec(_attention(hf, layer_type), ffn, norm) for layer_type in types))


def _attention(hf: Fields, layer_type: str) -> AttentionSpec:
    num_heads, num_kv_heads, head_dim = head_shape(hf)
    bias = hf.boolean("attention_bias", True)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope_spec(hf, head_dim, layer_type, theta=GPT_OSS_THETA),
        window=hf.integer("sliding_window", 128) if layer_type == "sliding_attention" else None,
        qkv_bias=bias,
        out_bias=bias,
        sinks=True,
    )


def _experts(hf: Fields) -> MoeSpec:
    num_experts, top_k = expert_counts(hf, "num_local_experts", "num_experts")
    return MoeSpec(
        num_experts=num_experts,
        top_k=top_k,
        expert=MlpSpec(hf.integer("intermediate_size"), hf.string("hidden_act", "silu"), bias=True),
        routing=TopKRouting(bias=True),
        clamp=SwigluClamp(hf.number("swiglu_alpha", 1.702), hf.number("swiglu_limit", 7.0, minimum=0.0)),
        layout="columns" if hf.object("quantization_config") is None else "mxfp4",
    )
