"""A model folder with random bfloat16 weights that every peer can load: config, tokenizer, safetensors.

Speed does not depend on the weights' values, so they are drawn once and repeated. Rows of the vocabulary that no text
maps to, and those of special tokens, are zero: with a zero logit greedy decoding never picks them, so no engine ends
early and none generates an id that its tokenizer cannot spell.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sirocco.bench.peers import vocabulary
from sirocco.runtime.config import read_config
from sirocco.runtime.errors import ModelLoadError

SHAPES = ("qwen3-0.6b", "llama-3.2-1b", "tiny")
_MODEL_TYPES = {"Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
_POOL_SIZE = 1_048_583  # a prime: no row length divides it, so rows of a matrix start at different places
_ITEM_BYTES = 2  # bfloat16
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Bits = NDArray[np.uint16]  # bfloat16, of which numpy knows nothing


def ensure_folder(root: Path, shape: str, seed: int = 0) -> Path:
    """The folder `root/shape`, written unless it is there already. Raises `ModelLoadError` for an unknown shape or when
    the disk refuses.
    """
    folder = root / shape
    if (folder / "model.safetensors").exists():
        read_config(folder)
        return folder
    config = make_config(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = vocabulary.make_tokenizer(config["vocab_size"])
        tokenizer.save(str(folder / "tokenizer.json"))
        _write_json(folder / "tokenizer_config.json", vocabulary.tokenizer_config(config["max_position_embeddings"]))
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", {"eos_token_id": vocabulary.EOS_ID, "do_sample": False})
        partial = folder / "model.safetensors.part"
        with partial.open("wb") as file:
            write_weights(file, config, tokenizer.get_vocab_size(), seed)
        partial.rename(folder / "model.safetensors")  # last, so that its presence says the folder is whole
    except OSError as error:
        raise ModelLoadError(f"the model folder for {shape} cannot be written: {error.strerror}") from None
    return folder


def make_config(shape: str) -> dict[str, Any]:
    """`config.json` of one of `SHAPES`."""
    if shape not in SHAPES:
        raise ModelLoadError(f"unknown shape {shape!r}: choose {', '.join(SHAPES)}")
    from sirocco.runtime.models import random  # imports torch

    geometry = random.SHAPES[shape]
    return geometry | {
        "model_type": _MODEL_TYPES[geometry["architectures"][0]],
        "torch_dtype": geometry["dtype"],  # the spelling that older readers know
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": geometry["num_hidden_layers"],  # mistral.rs wants it though no window is used
        "use_cache": True,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": vocabulary.EOS_ID,
        "pad_token_id": 0,
    }


def load_prompts(folder: Path) -> vocabulary.PromptMaker:
    """Prompts in the words of the folder's tokenizer."""
    return vocabulary.PromptMaker(Tokenizer.from_file(str(folder / "tokenizer.json")))


def tensor_shapes(config: Config) -> dict[str, Shape]:
    """Every tensor of the checkpoint by name, in the order of the layers."""
    width, head_dim = config["hidden_size"], config["head_dim"]
    hidden = config["intermediate_size"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer: dict[str, Shape] = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, q),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    shapes: dict[str, Shape] = {_EMBEDDING: (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes[_HEAD] = (config["vocab_size"], width)
    return shapes


def write_weights(file: BinaryIO, config: Config, used_tokens: int, seed: int) -> None:
    """A safetensors file, tensor after tensor: at no time are all weights in memory."""
    shapes = tensor_shapes(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _ITEM_BYTES
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of eight
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    source = _Normal(seed)
    for name, shape in shapes.items():
        if len(shape) == 1:
            file.write(to_bfloat16(np.ones(shape, np.float32)).tobytes())
            continue
        rows = used_tokens if name in (_EMBEDDING, _HEAD) else shape[0]
        special = len(vocabulary.SPECIAL_TOKENS) if name in (_EMBEDDING, _HEAD) else 0
        _write_zeros(file, special * shape[1])
        for chunk in source.take((rows - special) * shape[1], 1 / math.sqrt(shape[1])):
            file.write(chunk.tobytes())
        _write_zeros(file, (shape[0] - rows) * shape[1])


def to_bfloat16(values: NDArray[np.float32]) -> Bits:
    """Round finite values to the nearest bfloat16, to even between two."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class _Normal:
    """Normal numbers from a pool that is drawn once and gone through in a circle."""

    def __init__(self, seed: int) -> None:
        self._pool = np.random.default_rng(seed).standard_normal(_POOL_SIZE, np.float32)
        self._scaled: dict[float, Bits] = {}
        self._at = 0

    def take(self, count: int, scale: float) -> Iterator[Bits]:
        pool = self._scaled.get(scale)
        if pool is None:
            pool = self._scaled[scale] = to_bfloat16(self._pool * np.float32(scale))
        while count:
            chunk = pool[self._at : self._at + count]
            count -= len(chunk)
            self._at = (self._at + len(chunk)) % _POOL_SIZE
            yield chunk


def _write_zeros(file: BinaryIO, items: int) -> None:
    """Written out rather than skipped: a hole in the file would be cheaper to read than weights are."""
    block = bytes(1 << 20)
    for left in range(items * _ITEM_BYTES, 0, -len(block)):
        file.write(block[:left])


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=2)
        file.write(os.linesep)
