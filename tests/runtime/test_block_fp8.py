"""Checkpoints in blocks of FP8 load as what they stand for."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sirocco.runtime.block_fp8 import BlockFp8Checkpoint
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.load import load_model

BLOCK = (8, 16)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 30,
    "hidden_size": 40,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)},
}
LINEAR = {
    "self_attn.q_proj": (40, 40),
    "self_attn.k_proj": (20, 40),
    "self_attn.v_proj": (20, 40),
    "self_attn.o_proj": (40, 40),
    "mlp.gate_proj": (20, 40),
    "mlp.up_proj": (20, 40),
    "mlp.down_proj": (40, 20),
}


def quantise(values):
    """FP8 and a scale for each block, value by value."""
    rows, columns = (-(-size // block) for size, block in zip(values.shape, BLOCK, strict=True))
    packed, scales = torch.empty(values.shape, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = slice(i * BLOCK[0], (i + 1) * BLOCK[0]), slice(j * BLOCK[1], (j + 1) * BLOCK[1])
            scales[i, j] = values[part].abs().max() / 448
            packed[part] = (values[part] / scales[i, j]).to(torch.float8_e4m3fn)
    return packed, scales


def expand(packed, scales):
    wide = packed.float()
    for i in range(packed.shape[0]):
        for j in range(packed.shape[1]):
            wide[i, j] *= scales[i // BLOCK[0], j // BLOCK[1]]
    return wide


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    found = {"model.embed_tokens.weight": torch.randn(30, 40, generator=generator).bfloat16()}
    names = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    found |= {f"{name}.weight": torch.ones(40).bfloat16() for name in names}
    for name, shape in LINEAR.items():
        spread = torch.logspace(-3, 3, shape[0])[:, None]  # so that blocks need scales of their own
        packed, scales = quantise(torch.randn(shape, generator=generator) * spread)
        found[f"model.layers.0.{name}.weight"] = packed
        found[f"model.layers.0.{name}.weight_scale_inv"] = scales
    return found


def write(folder, tensors, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("at_once", [1, 64 << 20])
def test_matrices_are_expanded(tensors, tmp_path, at_once, monkeypatch):
    monkeypatch.setattr("sirocco.runtime.block_fp8._AT_ONCE", at_once)
    layer = load_model(write(tmp_path, tensors), "float32", "cpu").model.layers[0]
    parts = {"q": layer.mixer.qkv, "k": layer.mixer.qkv, "v": layer.mixer.qkv, "gate": layer.ffn.gate_up}
    for part, module in parts.items():
        name = next(name for name in LINEAR if name.endswith(f".{part}_proj"))
        packed, scales = (tensors[f"model.layers.0.{name}.weight{suffix}"] for suffix in ("", "_scale_inv"))
        assert torch.equal(module.weight.dense()[module.slices[part]], expand(packed, scales))
    packed, scales = (tensors[f"model.layers.0.mlp.down_proj.weight{suffix}"] for suffix in ("", "_scale_inv"))
    assert torch.equal(layer.ffn.down.weight.dense(), expand(packed, scales))


def test_run_in_bfloat16(tensors, tmp_path):
    loaded = load_model(write(tmp_path, tensors), "bfloat16", "cpu")
    name = "model.layers.0.mlp.down_proj.weight"
    expected = expand(tensors[name], tensors[f"{name}_scale_inv"]).bfloat16()
    assert torch.equal(loaded.model.layers[0].ffn.down.weight.dense(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.ones(2, 2)}, "weight_scale_inv' does not fit"),
        ({"weight": torch.ones(40, 20)}, "weight_scale_inv' does not fit"),
        ({"weight": None}, "scales a tensor that is missing"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tensors, tmp_path, change, message):
    name = "model.layers.0.mlp.down_proj.weight"
    for suffix, key in (("", "weight"), ("_scale_inv", "scale")):
        if key in change:
            tensors[name + suffix] = change[key]
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ModelLoadError, match=message):
        load_model(write(tmp_path, tensors), device="cpu")


@pytest.mark.parametrize("settings", [{}, {"weight_block_size": [128]}, {"weight_block_size": [0, 128]}])
def test_fp8_without_blocks_is_refused(tensors, tmp_path, settings):
    folder = write(tmp_path, tensors, quantization_config={"quant_method": "fp8"} | settings)
    with pytest.raises(ModelLoadError, match="weight_block_size"):
        load_model(folder, device="cpu")


def test_what_is_not_in_fp8_is_read_as_it_is(tensors, tmp_path):
    with BlockFp8Checkpoint(write(tmp_path, tensors), BLOCK) as checkpoint:
        assert not any(name.endswith("_scale_inv") for name in checkpoint)
        out = torch.empty(30, 40)
        checkpoint.read("model.embed_tokens.weight", out)
        assert torch.equal(out, tensors["model.embed_tokens.weight"].float())
        assert checkpoint.map("model.layers.0.mlp.down_proj.weight", torch.bfloat16) is None
