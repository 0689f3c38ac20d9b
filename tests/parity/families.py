"""Tiny random models of the families, made with transformers: the configs that bite."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
)
from transformers.utils import logging

from .mixtures import CASES as MIXTURES

SMALL = {
    "vocab_size": 211,
    "hidden_size": 96,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# Scalings whose original context of 32 is shorter than the prompts.
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
# So few rotations that the ramp would end beyond the head.
STEEP_YARN = YARN | {"rope_theta": 4.0, "original_max_position_embeddings": 256}
DEEPSEEK_YARN = YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16, "beta_slow": 2, "truncate": False}
# Beyond 32 tokens the frequencies depend on how long the request is.
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}


def longrope(num_pairs, **changes):
    factors = {
        "short_factor": [1.0 + 0.1 * i for i in range(num_pairs)],
        "long_factor": [2.0 + 0.4 * i for i in range(num_pairs)],
    }
    return {"rope_type": "longrope", "rope_theta": 10000.0} | factors | changes


def llama(**changes):
    return LlamaConfig(**SMALL | changes)


def mistral(**changes):
    return MistralConfig(**SMALL | changes)


def qwen2(**changes):
    return Qwen2Config(**{name: value for name, value in SMALL.items() if name != "head_dim"} | changes)


def qwen3(**changes):
    return Qwen3Config(**SMALL | changes)


def of_width(config_class):
    """Families whose heads share the width evenly."""

    def config(**changes):
        return config_class(**{name: value for name, value in SMALL.items() if name != "head_dim"} | changes)

    return config


def with_head_dim(config_class):
    def config(**changes):
        return config_class(**SMALL | changes)

    return config


gemma, gemma2, gemma3 = map(with_head_dim, (GemmaConfig, Gemma2Config, Gemma3TextConfig))
glm4, smollm3 = map(with_head_dim, (Glm4Config, SmolLM3Config))
phi2, phi3, starcoder2 = map(of_width, (PhiConfig, Phi3Config, Starcoder2Config))

CASES = {
    "llama": llama(),
    "llama-tied-one-kv-head": llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama-biases-head80": llama(attention_bias=True, mlp_bias=True, head_dim=80),
    "llama-no-gqa-head96": llama(num_key_value_heads=6, head_dim=96),
    "llama-linear": llama(rope_parameters=LINEAR),
    "llama-llama3": llama(rope_parameters=LLAMA3),
    "llama-yarn": llama(rope_parameters=YARN),
    "llama-yarn-clipped": llama(rope_parameters=STEEP_YARN),
    "llama-yarn-mscale": llama(rope_parameters=DEEPSEEK_YARN),
    "mistral-window": mistral(sliding_window=21),
    "mistral-no-window": mistral(sliding_window=None, head_dim=32),
    "qwen2": qwen2(),
    "qwen2-window-from-layer-1": qwen2(use_sliding_window=True, sliding_window=21, max_window_layers=1),
    "qwen2-window-unused": qwen2(use_sliding_window=False, sliding_window=21, max_window_layers=0),
    "qwen2-layer-types": qwen2(
        use_sliding_window=True,
        sliding_window=21,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        tie_word_embeddings=True,
    ),
    "qwen3": qwen3(),
    "qwen3-tied-head80-biases": qwen3(tie_word_embeddings=True, head_dim=80, attention_bias=True),
    "qwen3-window-yarn": qwen3(
        use_sliding_window=True, sliding_window=21, max_window_layers=1, rope_parameters=YARN | {"rope_theta": 1e6}
    ),
    "llama-dynamic": llama(rope_parameters=DYNAMIC, max_position_embeddings=32),
    "gemma": gemma(),
    "gemma-untied-biases-head48": gemma(tie_word_embeddings=False, attention_bias=True, head_dim=48),
    "gemma2-window": gemma2(sliding_window=21, query_pre_attn_scalar=40),
    "gemma2-uncapped-full": gemma2(
        attn_logit_softcapping=None, final_logit_softcapping=None, layer_types=["full_attention"] * 3
    ),
    "gemma2-hard-caps": gemma2(attn_logit_softcapping=2.0, final_logit_softcapping=1.5, sliding_window=21),
    "gemma3-window": gemma3(
        sliding_window=21,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        final_logit_softcapping=3.0,
    ),
    "phi2": phi2(),
    "phi2-qk-norm": phi2(qk_layernorm=True, num_attention_heads=3, num_key_value_heads=1),
    "phi2-tied-rotary-quarter": phi2(
        tie_word_embeddings=True, partial_rotary_factor=0.25, num_attention_heads=3, num_key_value_heads=3
    ),
    "phi3-window": phi3(sliding_window=21),
    "phi3-longrope": phi3(rope_parameters=longrope(8), original_max_position_embeddings=32),
    "phi3-longrope-partial-tied": phi3(
        num_attention_heads=4,
        rope_parameters=longrope(6, partial_rotary_factor=0.5),
        original_max_position_embeddings=32,
        tie_word_embeddings=True,
    ),
    "glm4": glm4(),
    "glm4-head80-no-biases": glm4(
        head_dim=80, attention_bias=False, partial_rotary_factor=0.4, tie_word_embeddings=True
    ),
    "starcoder2-window": starcoder2(sliding_window=21),
    "starcoder2-no-biases-untied": starcoder2(use_bias=False, tie_word_embeddings=False),
    "smollm3": smollm3(no_rope_layers=[1, 0, 1]),
    "smollm3-window-untied-biases": smollm3(
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=21,
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
    ),
}


def weights_of(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """What checkpoints hold: the parameters, and of the buffers the routers' corrections."""
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
    return [*model.named_parameters(), *buffers]


CASES |= MIXTURES


def save_model(config, folder: Path, **options) -> PreTrainedModel:
    """A model with random weights in `folder`."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    model = randomize(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    model.save_pretrained(folder, **options)
    return model


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """The model with random weights: also its norms and biases, which a fresh model has at one and zero."""
    with torch.no_grad():
        for name, parameter in weights_of(model):
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model
