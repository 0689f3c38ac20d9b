"""Tiny random models of the families, made with transformers: the configs that bite."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.utils import logging

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


def llama(**changes):
    return LlamaConfig(**SMALL | changes)


def mistral(**changes):
    return MistralConfig(**SMALL | changes)


def qwen2(**changes):
    return Qwen2Config(**{name: value for name, value in SMALL.items() if name != "head_dim"} | changes)


def qwen3(**changes):
    return Qwen3Config(**SMALL | changes)


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
}


def save_model(config, folder: Path, **options) -> PreTrainedModel:
    """A model with random weights in `folder`: also its norms and biases, which a fresh model has at one and zero."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder, **options)
    return model
