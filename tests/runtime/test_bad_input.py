"""Model folders that are wrong in one way each: one sentence says which, before memory is taken for a weight."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sirocco import AsyncEngine, Engine
from sirocco.kernels import activation
from sirocco.runtime.build import build_engine
from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.errors import ModelLoadError, SiroccoError
from sirocco.runtime.models.registry import class_name
from sirocco.runtime.wire import EngineOptions

from .test_weights import CONFIG, make_tensors

EXPERTS = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
UNKNOWN_SINE = f"unknown activation 'sine'; known are {', '.join(sorted(activation._KINDS))}"
MLP = {f"model.layers.{i}.mlp.{part}_proj.weight": None for i in range(2) for part in ("gate", "up", "down")}


def experts(count):
    """What takes the place of the feed-forwards in a mixture of so many experts."""
    tensors = dict(MLP)
    for i in range(2):
        moe = f"model.layers.{i}.block_sparse_moe"
        tensors[f"{moe}.gate.weight"] = torch.zeros(count, 16)
        for expert in range(count):
            for part, shape in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16))):
                tensors[f"{moe}.experts.{expert}.{part}.weight"] = torch.zeros(shape)
    return tensors


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a folder with these changes to a good one; None takes a field or a tensor away."""

    def refuse(*_):
        raise AssertionError("a weight was read")

    def make(config, tensors=None):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
        if tensors is not None:
            merged = {name: t for name, t in (make_tensors() | tensors).items() if t is not None}
            save_file(merged, tmp_path / "model.safetensors")
        return tmp_path

    monkeypatch.setattr(Checkpoint, "read", refuse)
    return make


def refusal(folder, **options):
    with pytest.raises(ModelLoadError) as caught:
        build_engine(EngineOptions(model=str(folder), device="cpu", **options))
    message = str(caught.value)
    assert "\n" not in message and str(folder) not in message
    return message


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"hidden_size": None}, {}, "config.json: hidden_size is missing"),
        ({"hidden_size": "16"}, {}, "config.json: hidden_size must be an integer, got '16'"),
        ({"hidden_size": -16}, {}, "config.json: hidden_size must be between 1 and 2147483647, got -16"),
        ({"vocab_size": 0}, {}, "config.json: vocab_size must be between 1 and 2147483647, got 0"),
        ({"num_hidden_layers": 0}, {}, "config.json: num_hidden_layers must be between 1 and 1000, got 0"),
        ({"num_hidden_layers": 3}, {}, "config.json says 3 layers, the weights hold 2"),
        ({"num_hidden_layers": 150}, {}, "config.json says 150 layers, the weights hold 2"),
        (
            {"num_key_value_heads": 3},
            {},
            "config.json: num_key_value_heads (3) does not divide num_attention_heads (2)",
        ),
        ({"num_attention_heads": 3}, {}, "config.json: hidden_size is not a multiple of num_attention_heads (3)"),
        ({"head_dim": 2**30}, {}, "config.json: a head with 1073741824 dimensions to turn is too large"),
        ({"hidden_act": "sine"}, {}, UNKNOWN_SINE),
        (
            {"rope_scaling": {"rope_type": "spiral"}},
            {},
            "config.json: rope_scaling: rope_type 'spiral' is not supported; "
            "known are default, linear, llama3, yarn, dynamic, longrope, su",
        ),
        ({"quantization_config": {"quant_method": "x"}}, {}, "the checkpoint is quantised (x), which is not supported"),
        (
            {},
            {"model.norm.weight": torch.ones(17)},
            "tensor 'model.norm.weight' has the shape [17], config.json asks for [16]",
        ),
        ({}, {"model.norm.weight": None}, "the weights do not match config.json: 1 missing (model.norm.weight)"),
        ({}, {"x": torch.ones(1)}, "the weights do not match config.json: 1 unexpected (x)"),
        ({}, None, "the model folder holds no weights (.safetensors, .bin, .pt, .pth)"),
        (EXPERTS, experts(3), "config.json says 4 experts, the weights hold 3"),
        (EXPERTS, MLP, "config.json says 4 experts, the weights hold 0"),
        (EXPERTS | {"num_local_experts": 100_000}, experts(4), "config.json says 100000 experts, the weights hold 4"),
        (
            EXPERTS | {"num_local_experts": 1},
            experts(1),
            "config.json: num_experts_per_tok (2) is more than num_local_experts (1)",
        ),
    ],
)
def test_one_sentence_for_each_fault(config, tensors, message, write):
    assert refusal(write(config, tensors)) == message


def test_unknown_class_comes_before_its_fields(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    message = refusal(tmp_path)
    assert message.startswith("architecture 'NoSuchModel' is not supported; known are DeepseekV2ForCausalLM, ")
    assert "Gemma3ForConditionalGeneration" in message


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_truncated_safetensors(write, size):
    path = write({}, {}) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated" in refusal(path.parent)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"architectures": []}', '{"architectures": [1]}'])
def test_config_that_is_none(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert refusal(tmp_path).startswith("config.json")
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path) == "the model folder holds no config.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"kv_memory": 10}, "kv_memory of 10 bytes is too small"),
        ({"arch": "no-such"}, "there is no architecture 'no-such'; known are deepseekv2, .*qwen3, .*of their classes"),
        ({"arch": "qwen3"}, r"4 missing \(model\.layers\.0\.self_attn\.k_norm\.weight, "),
    ],
)
def test_options(options, message, write, monkeypatch):
    folder = write({}, {})
    if "kv_memory" in options:
        monkeypatch.undo()  # is known too small once the weights are there
    with pytest.raises(ModelLoadError, match=message):
        build_engine(EngineOptions(model=str(folder), device="cpu", **options))


def test_arch_forces(tmp_path):
    """Mistral's weights are called as Llama's; its config gives it a window where nothing is said."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["SomeoneElsesForCausalLM"]}))
    save_file(make_tensors(), tmp_path / "model.safetensors")
    for arch, window in (("llama", None), ("MistralForCausalLM", 4096)):
        core, _ = build_engine(EngineOptions(model=str(tmp_path), device="cpu", arch=arch, kv_memory=1 << 20))
        assert core.runner.model.spec.layers[0].mixer.window == window
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": None}))
    build_engine(EngineOptions(model=str(tmp_path), device="cpu", arch="llama", kv_memory=1 << 20))


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("llama", "LlamaForCausalLM"),
        ("Qwen3-MoE", "Qwen3MoeForCausalLM"),
        ("gpt_oss", "GptOssForCausalLM"),
        ("phi2", "PhiForCausalLM"),
        ("phi3.5moe", "PhimoeForCausalLM"),
        ("GemmaForCausalLM", "GemmaForCausalLM"),
        ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
        (None, None),
    ],
)
def test_names_of_architectures(arch, expected):
    assert class_name(arch) == expected


@pytest.mark.parametrize("options", [{"arch": "no-such"}, {"revision": "main"}, {"token_source": "hf_verysecret"}])
def test_the_engine_refuses_options_before_it_starts(options, tiny_model):
    with pytest.raises(SiroccoError) as caught:
        Engine(str(tiny_model), **options)
    assert "secret" not in str(caught.value)


def test_a_token_is_never_shown():
    engine = AsyncEngine("org/name", token_source="literal:hf_verysecret")
    assert "secret" not in repr(vars(engine)) + repr(vars(engine.client))
