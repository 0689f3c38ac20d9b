"""Configs of small models of the kinds that a decode step knows, with sizes that all kernels can do."""

import math
from typing import Any

from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.spec import ModelSpec
from sirocco.runtime.weights import loadable_modules

_COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

DENSE = _COMMON | {"architectures": ["Qwen3ForCausalLM"]}
MIXTURE = _COMMON | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
LATENT = _COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "kv_lora_rank": 24,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
# The two best experts by their neighbourhood; frequencies that change with the length of a request.
LONG_ROPE = (
    _COMMON
    | _EXPERTS
    | {
        "architectures": ["PhiMoEForCausalLM"],
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 32,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
            "short_mscale": 1.0,
            "long_mscale": 1.2,
            "original_max_position_embeddings": 32,
        },
    }
)
DYNAMIC_ROPE = DENSE | {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 32,
    "rope_scaling": {"type": "dynamic", "factor": 8.0},
}
MXFP4 = (
    _COMMON
    | _EXPERTS
    | {
        "architectures": ["GptOssForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 32,
        "sliding_window": 21,
        "quantization_config": {"quant_method": "mxfp4"},
    }
)
HYBRID = (
    _COMMON
    | _EXPERTS
    | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "shared_intermediate_size": 16,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "attention_multiplier": 0.25,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 12,
    }
)
RECURRENT = HYBRID | {"layer_types": ["mamba"] * 3, "num_local_experts": 0}

FAMILIES: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "mixture": MIXTURE,
    "latent": LATENT,
    "long-rope": LONG_ROPE,
    "dynamic-rope": DYNAMIC_ROPE,
    "mxfp4": MXFP4,
    "hybrid": HYBRID,
    "recurrent": RECURRENT,
}


def num_parameters(spec: ModelSpec) -> int:
    """How many numbers the weights of such a model hold."""
    slots = (slot for _, module in loadable_modules(Decoder(spec)) for slot in module.slots().values())
    return sum(math.prod(slot.shape) for slot in slots)
