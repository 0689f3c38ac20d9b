"""Write trained networks as folders that Hugging Face's libraries read.

python -m sirocco.runtime.demo.export --work DIR
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from sirocco.runtime.demo.network import LoraSettings, Network
from sirocco.runtime.demo.rendering import TEMPLATE
from sirocco.runtime.demo.train import load_network
from sirocco.runtime.demo.vocabulary import HEADERS, SPECIAL

__all__ = ["adapter_tensors", "export_adapter", "export_model", "model_tensors"]

PROJECTIONS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def model_tensors(network: Network) -> dict[str, Tensor]:
    """The network's weights under the names of Qwen3ForCausalLM, in bfloat16."""
    out = {"model.embed_tokens.weight": network.embeddings(), "model.norm.weight": network.norm}
    for i, block in enumerate(network.blocks):
        prefix = f"model.layers.{i}."
        for ours, theirs in NORMS.items():
            out[f"{prefix}{theirs}.weight"] = getattr(block, ours)
        for ours, names in PROJECTIONS.items():
            projection = getattr(block, ours)
            for name, part in zip(names, projection.weight.split(projection.outputs), strict=True):
                out[f"{prefix}{name}.weight"] = part
    return {name: tensor.detach().bfloat16().contiguous().clone() for name, tensor in out.items()}


def adapter_tensors(network: Network) -> dict[str, Tensor]:
    """The network's low-rank matrices under PEFT's names, in bfloat16."""
    out: dict[str, Tensor] = {}
    for i, block in enumerate(network.blocks):
        for ours, names in PROJECTIONS.items():
            projection = getattr(block, ours)
            for name, a, b in zip(names, projection.lora_a, projection.lora_b, strict=True):
                prefix = f"base_model.model.model.layers.{i}.{name}"
                out[f"{prefix}.lora_A.weight"] = a.detach().bfloat16().contiguous()
                out[f"{prefix}.lora_B.weight"] = b.detach().bfloat16().contiguous()
    return out


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that everyone may read."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json; the chat template lies in a file of its own."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", *HEADERS],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }


def export_model(network: Network, tokenizer: Path, out: Path) -> None:
    """A folder with config, weights, tokenizer and chat template."""
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = Tokenizer.from_file(str(tokenizer))
    pad, _, eos = (SPECIAL.index(token) for token in SPECIAL)
    assert [vocabulary.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    save_tensors(model_tensors(network), out / "model.safetensors")
    write_json(out / "config.json", network.shape.hf_config(eos=eos, pad=pad))
    generation = {"do_sample": False, "eos_token_id": [eos, pad], "pad_token_id": pad, "max_new_tokens": 512}
    write_json(out / "generation_config.json", generation)
    write_json(out / "tokenizer_config.json", tokenizer_config())
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    if TEMPLATE.parent != out.resolve():
        shutil.copyfile(TEMPLATE, out / "chat_template.jinja")


def export_adapter(network: Network, out: Path) -> None:
    """A folder with an adapter as PEFT writes it."""
    settings = network.lora
    assert isinstance(settings, LoraSettings)
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(adapter_tensors(network), out / "adapter_model.safetensors")
    modules = sorted(name.rsplit(".", 1)[1] for names in PROJECTIONS.values() for name in names)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "demo",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "target_modules": modules,
    }
    write_json(out / "adapter_config.json", config)


def main() -> None:
    """Export whatever has been trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the trainer's folder")
    parser.add_argument(
        "--out", type=Path, default=TEMPLATE.parent.parent, help="folder to write demo, demo-draft and demo-lora into"
    )
    options = parser.parse_args()
    tokenizer = options.work / "tokenizer.json"
    for name, folder in (("finish", "demo"), ("draft", "demo-draft")):
        if (options.work / f"{name}.pt").exists():
            export_model(load_network(options.work / f"{name}.pt"), tokenizer, options.out / folder)
    if (options.work / "lora.pt").exists():
        export_adapter(load_network(options.work / "lora.pt"), options.out / "demo-lora")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
