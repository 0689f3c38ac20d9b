"""Models of a known geometry with random weights, for benchmarks and tests: the same spec path, no files."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.device import choose_device, choose_dtype
from sirocco.runtime.models.load import LoadedModel
from sirocco.runtime.models.registry import build_spec
from sirocco.runtime.weights import Loadable, Slot, loadable_modules

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 40960,
}
_LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

_QWEN3_MOE = _QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": False,
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _QWEN3
    | {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": _QWEN3
    | {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": _QWEN3
    | {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "qwen3-30b-a3b": _QWEN3_MOE | {"num_hidden_layers": 48},
    "qwen3-30b-a3b-4-layers": _QWEN3_MOE | {"num_hidden_layers": 4},  # what a small machine can hold
    "tiny-moe": _QWEN3_MOE
    | {
        "vocab_size": 8192,
        "hidden_size": 256,
        "moe_intermediate_size": 128,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "llama-3.2-1b": _LLAMA3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rope_scaling": _LLAMA3_ROPE | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": _LLAMA3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_scaling": _LLAMA3_ROPE | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
}

QUANTISED_BYTE = 115  # as a scale of MXFP4 2^-12, as values 1.5 and 6
POOL_SIZE = 1_048_583  # a prime: no row length divides it, so rows of a matrix start at different places


def random_model(shape: str, dtype: str = "auto", device: str = "auto", seed: int = 0) -> LoadedModel:
    """A model of one of `SHAPES`. Raises `ModelLoadError` for another name.

    Weights are normal with variance 1 / fan-in, drawn once and repeated: speed does not depend on them, and drawing
    billions takes minutes.
    """
    started = time.perf_counter()
    if shape not in SHAPES:
        raise ModelLoadError(f"unknown model shape {shape!r}: choose {', '.join(SHAPES)}")
    config = make_config(SHAPES[shape])
    spec = build_spec(config)
    run_device = choose_device(device)
    run_dtype = choose_dtype(dtype, config.dtype or "float32", run_device)
    model = Decoder(spec, run_device)
    pool = torch.randn(POOL_SIZE, generator=torch.Generator().manual_seed(seed)).to(run_device)
    for _, module in loadable_modules(model):
        _fill(module, pool, run_dtype)
    return LoadedModel(model, spec, config, run_dtype, run_device, time.perf_counter() - started, model.num_bytes)


def _fill(module: Loadable, pool: Tensor, dtype: torch.dtype) -> None:
    module.assign({name: _tensor(name, slot, pool, slot.dtype or dtype) for name, slot in module.slots().items()})


def _tensor(name: str, slot: Slot, pool: Tensor, dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        return torch.full(slot.shape, QUANTISED_BYTE, dtype=dtype, device=pool.device)
    return _matrix(slot, pool, dtype) if slot.rest else _vector(name, slot, pool, dtype)


def _vector(name: str, slot: Slot, pool: Tensor, dtype: torch.dtype) -> Tensor:
    """Norm weights are one, biases zero."""
    return torch.full(slot.shape, 1.0 if name == "weight" else 0.0, dtype=dtype, device=pool.device)


def _matrix(slot: Slot, pool: Tensor, dtype: torch.dtype) -> Tensor:
    scaled = (pool / math.sqrt(slot.rest[-1])).to(dtype)
    out = torch.empty(slot.shape, dtype=dtype, device=pool.device)
    flat = out.view(-1)
    for start in range(0, flat.numel(), POOL_SIZE):
        chunk = flat[start : start + POOL_SIZE]
        chunk.copy_(scaled[: chunk.numel()])
    return out
