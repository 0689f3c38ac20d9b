"""Tiny random models with mixtures of experts, latent attention and recurrent layers: the configs that bite."""

from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    MixtralConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)

SMALL = {
    "vocab_size": 211,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def mixtral(**changes):
    return MixtralConfig(**SMALL | {"num_local_experts": 5, "num_experts_per_tok": 2} | changes)


def qwen3_moe(**changes):
    moe = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
    return Qwen3MoeConfig(**SMALL | moe | changes)


def phimoe(**changes):
    moe = {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "router_jitter_noise": 0.05}
    return PhimoeConfig(**SMALL | moe | changes)


# transformers scales cos and sin by the long factor beyond the original context, but never turns by the long set.
PHIMOE_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.3 * i for i in range(8)],
    "long_factor": [1.0 + 0.3 * i for i in range(8)],
    "short_mscale": 1.2,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 32,
}

LATENT = {name: value for name, value in SMALL.items() if name != "head_dim"} | {
    "num_key_value_heads": 6,
    "kv_lora_rank": 40,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 28,
    "moe_intermediate_size": 40,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}


def deepseek_v2(**changes):
    return DeepseekV2Config(**LATENT | {"first_k_dense_replace": 1} | changes)


def deepseek_v3(**changes):
    groups = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
    return DeepseekV3Config(**LATENT | groups | {"first_k_dense_replace": 1, "n_shared_experts": 1} | changes)


def gpt_oss(**changes):
    moe = {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 21, "attn_implementation": "eager"}
    return GptOssConfig(**SMALL | moe | {"rope_parameters": YARN | {"truncate": False}} | changes)


def granite(**changes):
    mixers = {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mamba_n_heads": 12,
        "mamba_d_state": 20,
        "mamba_n_groups": 3,
        "mamba_chunk_size": 16,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 72,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.5,
    }
    return GraniteMoeHybridConfig(**SMALL | mixers | changes)


def glm4_moe(**changes):
    moe = {"n_routed_experts": 6, "num_experts_per_tok": 3, "n_group": 2, "moe_intermediate_size": 40}
    return Glm4MoeConfig(**SMALL | moe | changes)


def glm4_moe_lite(**changes):
    return Glm4MoeLiteConfig(**LATENT | {"n_group": 2, "routed_scaling_factor": 1.3} | changes)


CASES = {
    "mixtral": mixtral(),
    "mixtral-window-one-of-three": mixtral(sliding_window=21, num_local_experts=3, num_experts_per_tok=1),
    "qwen3-moe": qwen3_moe(norm_topk_prob=True),
    "qwen3-moe-some-layers-dense": qwen3_moe(mlp_only_layers=[0], num_experts=11, attention_bias=True),
    "qwen3-moe-every-other-layer": qwen3_moe(
        decoder_sparse_step=2, use_sliding_window=True, sliding_window=21, tie_word_embeddings=True
    ),
    "deepseek-v2-lite": deepseek_v2(q_lora_rank=None, n_shared_experts=1),
    "deepseek-v2-groups-yarn": deepseek_v2(
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.0,
        rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        attention_bias=True,
    ),
    "deepseek-v3": deepseek_v3(rope_interleave=False, norm_topk_prob=False, first_k_dense_replace=0),
    "deepseek-v3-yarn": deepseek_v3(rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}),
    "glm4-moe": glm4_moe(use_qk_norm=True, attention_bias=True, first_k_dense_replace=1),
    "glm4-moe-all-sparse": glm4_moe(first_k_dense_replace=0, routed_scaling_factor=1.7, norm_topk_prob=False),
    "glm4-moe-lite": glm4_moe_lite(),
    "glm4-moe-lite-two-dense": glm4_moe_lite(mlp_layer_types=["dense", "dense", "sparse"], attention_bias=True),
    "gpt-oss": gpt_oss(),
    "gpt-oss-no-yarn-tight-clamp": gpt_oss(
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        swiglu_limit=0.5,
        swiglu_alpha=1.3,
        attention_bias=False,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "granite-hybrid": granite(),
    "granite-hybrid-rope-biases-tied": granite(
        position_embedding_type="rope",
        attention_bias=True,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        mamba_n_groups=1,
        mamba_d_conv=3,
        tie_word_embeddings=True,
    ),
    "granite-hybrid-dense": granite(num_local_experts=0, time_step_limit=[0.01, 0.6]),
    "phimoe": phimoe(attention_bias=True, lm_head_bias=True),
    "phimoe-window-longrope": phimoe(sliding_window=21, rope_parameters=PHIMOE_LONGROPE),
}
