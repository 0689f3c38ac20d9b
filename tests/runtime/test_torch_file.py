"""Weights in torch's own format: the same model as from safetensors, and never a pickle that does more."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.load import load_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "dtype": "float32",
}
LAYER = {
    "input_layernorm": (16,),
    "post_attention_layernorm": (16,),
    **{f"self_attn.{part}_proj": (16, 16) for part in "qkvo"},
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}
SHAPES = {"model.embed_tokens": (30, 16), "model.norm": (16,), "lm_head": (30, 16)} | {
    f"model.layers.0.{name}": shape for name, shape in LAYER.items()
}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def assert_loads(folder, tensors):
    loaded = load_model(folder, "float32", "cpu")
    assert torch.equal(loaded.model.embed.weight, tensors["model.embed_tokens.weight"])
    down = loaded.model.layers[0].ffn.down.weight.dense()
    assert torch.equal(down, tensors["model.layers.0.mlp.down_proj.weight"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_one_file(folder, tensors, name, is_zip):
    torch.save(tensors, folder / name, _use_new_zipfile_serialization=is_zip)
    torch.save({"step": 3}, folder / "optimizer.pt")  # of a trainer: not ours
    assert_loads(folder, tensors)


def test_shards(folder, tensors):
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-{i}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    torch.save({"extra": torch.ones(1)}, folder / "other.bin")  # not in the index
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_loads(folder, tensors)
    (folder / "pytorch_model-1.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"1 of 2 weight files are missing, first pytorch_model-1\.bin"):
        load_model(folder, device="cpu")


def test_safetensors_are_preferred(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert_loads(folder, tensors)


def test_views_parameters_and_shared_storage(folder, tensors):
    name = "model.layers.0.mlp.down_proj.weight"
    stored = dict(tensors)
    stored[name] = tensors[name].t().contiguous().t()
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] = torch.nn.Parameter(stored["lm_head.weight"])
    torch.save(stored, folder / "pytorch_model.bin")
    assert_loads(folder, stored)


def test_experts_stacked_in_one_tensor(tmp_path):
    values = torch.arange(24.0).view(2, 3, 4)
    torch.save({"experts": values}, tmp_path / "model.pt")
    out = torch.empty(6, 4)
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.read("experts", out)
    assert torch.equal(out.view(2, 3, 4), values)


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil > evil",)


def assert_refused(folder, message):
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_model(folder, device="cpu")
    assert str(folder) not in str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_code_is_not_run(folder, tensors, is_zip, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "pytorch_model.bin"
    torch.save(tensors | {"evil": Evil()}, path, _use_new_zipfile_serialization=is_zip)
    asked = r"asks for '\w+\.system', but only files of plain tensors are loaded"
    assert_refused(folder, asked if is_zip else "is not a file of plain tensors, or is broken")
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    assert_refused(folder, "is not a file of plain tensors, or is broken")
    assert not (folder / "evil").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(1)], "does not hold tensors by name"),
        ({"model": {"a": torch.ones(1)}}, "does not hold tensors by name: 'model' is none"),
        ({3: torch.ones(1)}, "does not hold tensors by name: '3' is none"),
        ({"a": torch.ones(1, device="meta")}, "tensor 'a' is not a plain dense tensor"),
        ({"a": torch.eye(3).to_sparse()}, "tensor 'a' is not a plain dense tensor"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, r"tensor 'a' has the dtype torch\.complex64"),
        ({"a": torch.ones(1).expand(2**40, 2**10)}, "tensor 'a' claims more elements than are stored"),
        ({"a": torch.ones(1).expand(2)}, "tensor 'a' claims more elements than are stored"),
        ({}, "config.json says 1 layers, the weights hold 0"),
    ],
    ids=["list", "nested", "number", "meta", "sparse", "complex", "huge view", "small view", "empty"],
)
def test_other_contents(folder, value, message):
    torch.save(value, folder / "pytorch_model.bin")
    assert_refused(folder, message)


@pytest.mark.parametrize("size", [0, 3, 100, 1500, -200, -1])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_truncated_file(folder, tensors, size, is_zip):
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(folder, r"pytorch_model\.bin .*(truncated|broken)")


def test_compressed_file(folder, tensors):
    plain, path = folder / "plain", folder / "pytorch_model.bin"
    torch.save(tensors, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_refused(folder, "is compressed")


def test_a_storage_that_its_file_does_not_hold(folder):
    """A tensor's record that is shorter than what its pickle says."""
    torch.save({"a": torch.ones(64)}, folder / "plain")
    with (
        zipfile.ZipFile(folder / "plain") as source,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(b"K@", b"M\xff\xff") if name.endswith("data.pkl") else data)
    assert_refused(folder, r"pytorch_model\.bin ")
