"""Loading folders that are whole, and refusing the others before a weight is read."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models import decoder
from sirocco.runtime.models import load as loading
from sirocco.runtime.models.linear import DenseWeight
from sirocco.runtime.models.load import load_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "dtype": "float32",
}


def make_tensors(num_layers=2, dtype=torch.float32):
    """What a checkpoint of CONFIG holds."""
    shapes = {"model.embed_tokens.weight": (30, 16), "model.norm.weight": (16,), "lm_head.weight": (30, 16)}
    for i in range(num_layers):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (16,),
                "post_attention_layernorm": (16,),
                "self_attn.q_proj": (16, 16),
                "self_attn.k_proj": (8, 16),
                "self_attn.v_proj": (8, 16),
                "self_attn.o_proj": (16, 16),
                "mlp.gate_proj": (24, 16),
                "mlp.up_proj": (24, 16),
                "mlp.down_proj": (16, 24),
            }.items()
        }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, make_tensors())
    return tmp_path


def write(folder, tensors, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, folder / "model.safetensors")


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(folder, **options):
    return load_model(folder, device="cpu", **options)


def assert_refused(folder, message, monkeypatch):
    """Loading fails with the message, and before any weight is read."""

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Checkpoint, "read", read)
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(folder)
    assert str(folder) not in str(caught.value)


def test_tensors_arrive_where_they_belong(folder):
    model, tensors = load(folder).model, make_tensors()
    qkv, prefix = model.layers[1].mixer.qkv, "model.layers.1.self_attn."
    for part, rows in qkv.slices.items():
        assert torch.equal(qkv.weight.dense()[rows], tensors[f"{prefix}{part}_proj.weight"])
    assert torch.equal(model.layers[0].ffn.down.weight.dense(), tensors["model.layers.0.mlp.down_proj.weight"])
    assert torch.equal(model.layers[0].ffn_norm.weight, tensors["model.layers.0.post_attention_layernorm.weight"])
    assert torch.equal(model.embed.weight, tensors["model.embed_tokens.weight"])
    assert torch.equal(model.head.weight.dense(), tensors["lm_head.weight"])


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_conversion_to_the_run_dtype(tmp_path, stored, dtype):
    tensors = make_tensors(dtype=stored)
    write(tmp_path, tensors)
    loaded = load(tmp_path, dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype)
    down = loaded.model.layers[1].ffn.down.weight.dense()
    assert torch.equal(down, tensors["model.layers.1.mlp.down_proj.weight"].to(loaded.dtype))


def test_dtype_of_the_weights_where_the_config_does_not_say(tmp_path):
    write(tmp_path, make_tensors(), dtype=None)
    assert load(tmp_path).dtype == torch.float32


def test_shards(folder, tmp_path_factory):
    sharded, tensors = tmp_path_factory.mktemp("sharded"), make_tensors()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, sharded / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    save_file({"extra": torch.ones(1)}, sharded / "consolidated.safetensors")  # not in the index: not ours
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (sharded / "config.json").write_text(json.dumps(CONFIG))
    one, many = load(folder).model, load(sharded).model
    assert torch.equal(one.layers[1].mixer.qkv.weight.dense(), many.layers[1].mixer.qkv.weight.dense())


def test_an_index_that_outlived_its_files(folder):
    """transformers leaves one behind where a model is saved anew as a single file."""
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(load(folder).model.layers) == 2


def test_files_of_other_programs_beside_the_weights(tmp_path):
    write(tmp_path, make_tensors())
    (tmp_path / "model.safetensors").unlink()
    torch.save(make_tensors(), tmp_path / "pytorch_model.bin")
    for name in ("adapter_model.safetensors", "consolidated.safetensors", "some.safetensors"):
        save_file({"other": torch.ones(1)}, tmp_path / name)
    assert len(load(tmp_path).model.layers) == 2
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "some.safetensors").unlink()
    assert len(load(tmp_path).model.layers) == 2


def test_weights_beyond_all_memory_are_refused_before_any_is_read(folder, monkeypatch):
    needed = 4 * sum(tensor.numel() for tensor in make_tensors().values())
    monkeypatch.setattr(loading, "total_memory", lambda: needed)
    load(folder)
    monkeypatch.setattr(loading, "total_memory", lambda: needed - 1)
    monkeypatch.setattr(loading, "load_weights", lambda *_: pytest.fail("read"))
    with pytest.raises(ModelLoadError, match=r"the weights take 0\.0 GiB in float32, and there are 0\.0 GiB of memory"):
        load(folder)


def test_tied_head_shares_the_embedding(tmp_path):
    tensors = make_tensors()
    del tensors["lm_head.weight"]
    write(tmp_path, tensors, tie_word_embeddings=True)
    loaded = load(tmp_path)
    assert loaded.model.embed.output.dense() is loaded.model.embed.weight
    assert loaded.weight_bytes == 4 * sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_large_embedding_stays_in_its_file(tmp_path, tied, offset, monkeypatch):
    monkeypatch.setattr(decoder, "MIN_IN_FILE", 1)
    tensors = make_tensors(dtype=torch.bfloat16)
    if tied:
        del tensors["lm_head.weight"]
    write(tmp_path, tensors, tie_word_embeddings=tied)
    path = tmp_path / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    raw = path.read_bytes()[8:]
    path.write_bytes(struct.pack("<Q", length + offset) + raw[:length] + b" " * offset + raw[length:])
    loaded = load(tmp_path, dtype="bfloat16")
    embed = loaded.model.embed
    packed = not (tied and isinstance(embed.output, DenseWeight))  # else what is looked up is also what is multiplied
    assert embed.in_file == (packed and offset == 0)
    assert torch.equal(embed(torch.tensor([3, 29])), tensors["model.embed_tokens.weight"][[3, 29]])
    if tied:
        assert torch.equal(embed.output.dense(), tensors["model.embed_tokens.weight"])
    product = embed.output.num_bytes if tied and packed else 0  # a form of its own, whose panels may be padded
    assert embed.num_bytes == product + (0 if embed.in_file else embed.weight.nbytes)


def test_what_every_step_reads_whole_is_not_left_in_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "MIN_IN_FILE", 1)
    tensors = make_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write(tmp_path, tensors, tie_word_embeddings=True)
    assert not load(tmp_path).model.embed.in_file


def test_names_that_no_model_needs_are_ignored(tmp_path):
    tensors = make_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    write(tmp_path, tensors)
    load(tmp_path)


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_beside_a_tied_embedding_is_used_where_it_differs(tmp_path, equal, caplog):
    tensors = make_tensors()
    if equal:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write(tmp_path, tensors, tie_word_embeddings=True)
    loaded = load(tmp_path)
    head = loaded.model.embed.output if equal else loaded.model.head.weight
    assert torch.equal(head.dense(), tensors["lm_head.weight"])
    assert loaded.spec.tied_embeddings is equal
    assert ("another one is stored" in caplog.text) is not equal


def test_progress_is_silent_where_nobody_looks(folder, capsys):
    load(folder, progress=True)
    assert capsys.readouterr().err == ""


def test_missing_tensors(tmp_path, monkeypatch):
    tensors = make_tensors()
    for name in [name for name in tensors if "layernorm" in name]:
        del tensors[name]
    write(tmp_path, tensors)
    assert_refused(tmp_path, r"4 missing \(model\.layers\.0\.input_layernorm\.weight, .*, \.\.\.\)", monkeypatch)


def test_missing_head(tmp_path, monkeypatch):
    tensors = make_tensors()
    del tensors["lm_head.weight"]
    write(tmp_path, tensors)
    assert_refused(tmp_path, r"1 missing \(lm_head\.weight\)", monkeypatch)


@pytest.mark.parametrize("name", ["a\ud800", "\x1b[2Ja", "a" * 300, "\0"], ids=["surrogate", "escape", "long", "nul"])
def test_names_of_missing_files_can_be_shown(folder, name):
    index = {"weight_map": {"a": f"{name}.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="1 of 1 weight files are missing, first ") as caught:
        load(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_unexpected_tensor(tmp_path, monkeypatch):
    write(tmp_path, make_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})
    assert_refused(tmp_path, r"1 unexpected \(model\.layers\.0\.self_attn\.q_proj\.bias\)", monkeypatch)


@pytest.mark.parametrize("held", [1, 3])
def test_number_of_layers(tmp_path, held, monkeypatch):
    write(tmp_path, make_tensors(held))
    assert_refused(tmp_path, f"config.json says 2 layers, the weights hold {held}", monkeypatch)


def test_shape(tmp_path, monkeypatch):
    write(tmp_path, make_tensors() | {"model.layers.1.mlp.up_proj.weight": torch.ones(24, 17)})
    assert_refused(tmp_path, r"'model\.layers\.1\.mlp\.up_proj\.weight' has the shape \[24, 17\]", monkeypatch)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_quantised_weights(tmp_path, dtype, monkeypatch):
    write(tmp_path, make_tensors() | {"model.layers.1.mlp.up_proj.weight": torch.ones(24, 16).to(dtype)})
    assert_refused(tmp_path, r"'model\.layers\.1\.mlp\.up_proj\.weight' is quantised", monkeypatch)


def test_quantised_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, make_tensors(), quantization_config={"quant_method": "gptq", "bits": 4})
    assert_refused(tmp_path, r"the checkpoint is quantised \(gptq\)", monkeypatch)


@pytest.mark.parametrize("size", [-1, 500, 7, 0])
def test_truncated_file(folder, size, monkeypatch):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(folder, r"model\.safetensors .*truncated", monkeypatch)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "broken header"),
        (b"[]", "broken header"),
        (b"[" * 5000, "broken header"),
        ({"a": 3}, "tensor 'a' is not described"),
        ({"a": entry(shape=(-2,))}, "tensor 'a' is not described"),
        ({"a": entry(offsets=(0, "8"))}, "tensor 'a' is not described"),
        ({"a": entry(dtype="F7")}, "tensor 'a' has the unknown dtype 'F7'"),
        ({"a": entry(shape=(3,))}, "size of tensor 'a' does not match"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "tensor 'b' overlaps another"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, "tensor 'b' overlaps another or leaves a gap"),
        ({"a": entry(offsets=(-8, 0))}, "tensor 'a' overlaps another"),
        ({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, "truncated: tensor 'a' ends beyond the file"),
    ],
)
def test_broken_header(tmp_path, header, message, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_raw(tmp_path / "model.safetensors", header, bytes(20))
    assert_refused(tmp_path, message, monkeypatch)


def test_header_larger_than_the_file(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert_refused(tmp_path, "not a safetensors file, or is truncated", monkeypatch)


def test_config_without_weights(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_refused(tmp_path, r"holds no weights \(\.safetensors, \.bin, \.pt, \.pth\)$", monkeypatch)
    (tmp_path / "training_args.bin").touch()
    (tmp_path / "model.gguf").touch()
    assert_refused(tmp_path, r"holds no weights .*, only a \.gguf, which is not supported", monkeypatch)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map must be an object"),
        ({"weight_map": {"a": 1}}, "must name .safetensors files"),
        ({"weight_map": {"a": "../model.safetensors"}}, "of the same folder"),
        ({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}, "2 of 2 weight files are missing"),
    ],
)
def test_broken_index(folder, index, message, monkeypatch):
    (folder / "model.safetensors").rename(folder / "model-3.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, message, monkeypatch)


def test_a_tensor_in_two_files(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"lm_head.weight": torch.ones(30, 16)}, folder / "b.safetensors")
    assert_refused(folder, r"'lm_head\.weight' is in both a\.safetensors and b\.safetensors", monkeypatch)
