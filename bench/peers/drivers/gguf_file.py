"""Writes the bfloat16 GGUF file that llama.cpp reads, from a generated model folder, with the gguf package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import Spec

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def prepare(spec: Spec) -> None:
    """The file beside the folder, unless it is there and younger than the weights."""
    folder = Path(spec["folder"])
    path = folder.with_name(f"{folder.name}-{spec['variant']}.gguf")
    weights = folder / "model.safetensors"
    if path.exists() and path.stat().st_mtime >= weights.stat().st_mtime:
        return
    config = json.loads((folder / "config.json").read_text())
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, config["model_type"])
    _add_geometry(writer, config)
    _add_tokenizer(writer, folder, config)
    _add_tensors(writer, weights, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def _add_geometry(writer: Any, config: dict[str, Any]) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    spelled = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = [spelled.get(i, f"<unused {i}>") for i in range(config["vocab_size"])]
    kinds = [
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL if i in spelled else gguf.TokenType.UNUSED
        for i in range(config["vocab_size"])
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def _add_tensors(writer: Any, path: Path, config: dict[str, Any]) -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    data = np.memmap(path, np.uint16, mode="r", offset=8 + header_bytes)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (at // 2 for at in entry["data_offsets"])
        values = data[begin:end].reshape(entry["shape"])
        target = gguf_name(name)
        if values.ndim == 1:  # llama.cpp wants the weights of norms in float32
            writer.add_tensor(target, (values.astype(np.uint32) << 16).view(np.float32))
            continue
        part = target.split(".")[-2]
        if config["model_type"] == "llama" and part in heads:
            values = interleave(values, heads[part])
        writer.add_tensor(target, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    if (factors := rope_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` is `blk.3.attn_q.weight` there."""
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.weight"


def interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows [H * D, C] from rotary halves to neighbouring pairs, which llama.cpp's llama architecture rotates."""
    rows, width = values.shape
    return np.ascontiguousarray(values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width))


def rope_factors(config: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """What llama.cpp divides each rotary frequency by, float32 [D / 2]: the scaling of Llama 3.1; None without one."""
    rope = config.get("rope_scaling")
    if rope is None:
        return None
    if rope["rope_type"] != "llama3":
        raise ValueError(f"rope scaling {rope['rope_type']} has no GGUF form here")
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, config["head_dim"], 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / config["head_dim"])
        turns = rope["original_max_position_embeddings"] / wavelength  # of this frequency over the original context
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)  # 1: untouched, 0: stretched by the whole factor
        factors.append(1 / (blend + (1 - blend) / rope["factor"]))
    return np.array(factors, np.float32)
