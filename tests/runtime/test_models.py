"""Specs from configs, devices, caches and random models."""

import json

import pytest
import torch
from transformers.activations import ACT2FN

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models import device
from sirocco.runtime.models.block import make_ffn
from sirocco.runtime.models.cache import allocate_caches, allocated_bytes
from sirocco.runtime.models.linear import FusedLinear
from sirocco.runtime.models.norm import make_norm
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.models.registry import build_spec
from sirocco.runtime.models.spec import LinearScaling, MlpSpec, NormSpec

from .tiny_models import num_parameters

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def spec(**changes):
    return build_spec(make_config(CONFIG | changes))


def windows(**changes):
    return [block.mixer.window for block in spec(**changes).layers]


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
    ],
)
def test_known_geometries_have_their_number_of_parameters(shape, count):
    assert num_parameters(build_spec(make_config(SHAPES[shape]))) == count


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 7}, 7)],
)
def test_mistral_window(settings, expected):
    assert windows(architectures=["MistralForCausalLM"], **settings) == [expected] * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sliding_window": 7}, [None, None, None]),
        ({"sliding_window": 7, "use_sliding_window": False, "max_window_layers": 0}, [None, None, None]),
        ({"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}, [None, 7, 7]),
        ({"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, [None, None, None]),
        (
            {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            [7, None, 7],
        ),
    ],
)
@pytest.mark.parametrize("family", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwen_windows(family, settings, expected):
    assert windows(architectures=[family], **settings) == expected


def test_rope_per_layer_type():
    layers = spec(
        architectures=["Qwen3ForCausalLM"],
        use_sliding_window=True,
        sliding_window=7,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    ).layers
    ropes = [block.mixer.rope for block in layers]
    assert [rope.theta for rope in ropes] == [1e6, 1e4, 1e6]
    assert [rope.scaling for rope in ropes] == [LinearScaling(8.0), None, LinearScaling(8.0)]


@pytest.mark.parametrize(
    "hub_era",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16}},
    ],
    ids=json.dumps,
)
def test_both_spellings_of_rope_settings_give_one_spec(hub_era):
    scaling = dict(hub_era.get("rope_scaling") or {})
    scaling["rope_type"] = scaling.pop("type", None) or scaling.get("rope_type", "default")
    assert spec(**hub_era) == spec(rope_parameters=scaling | {"rope_theta": hub_era["rope_theta"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["NoSuchForCausalLM"]},
            "'NoSuchForCausalLM' is not supported; known are .*LlamaForCausalLM, ",
        ),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 18}, "hidden_size is not a multiple of num_attention_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be between 1 and 1000,"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads \(3\) does not divide num_attention_heads \(4\)"),
        ({"head_dim": 5}, "turns 5 of 5 dimensions"),
        ({"rope_theta": "big"}, "rope_theta must be a finite number"),
        ({"rope_theta": 0}, "rope_theta must be greater than 1"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type 'spiral' is not supported; known are default, linear, "),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor must be a list of 2 numbers"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0, "x"]}}, "short_factor must be a finite number"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor is missing"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "needs more than 2 dimensions"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "has 1 entries for 3 layers"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["linear_attention"] * 3}, "holds 'linear_attention'"),
    ],
)
def test_wrong_config_is_refused(changes, message):
    with pytest.raises(ModelLoadError, match=message):
        spec(**changes)


def test_caches_take_what_the_spec_says():
    model = spec(architectures=["MistralForCausalLM"])
    caches = allocate_caches(model, num_blocks=5, block_size=8, dtype=torch.bfloat16, device="cpu")
    assert [cache.k.shape for cache in caches] == [(5, 2, 8, 4)] * 3
    assert allocated_bytes(caches) == 5 * 8 * model.cache_bytes_per_token(2)


def test_fused_linear_knows_its_slices():
    fused = FusedLinear(4, {"q": 6, "k": 2, "v": 2})
    assert fused.slices == {"q": slice(0, 6), "k": slice(6, 8), "v": slice(8, 10)}
    weight = torch.randn(10, 4)
    fused.assign({"weight": weight.clone()})
    x = torch.randn(3, 4)
    assert torch.allclose(fused(x)[:, fused.slices["k"]], x @ weight[6:8].T)


def test_packed_weight_multiplies_and_expands_like_the_dense_one():
    fused, dense = FusedLinear(48, {"gate": 17, "up": 20}, bias=True), torch.randn(37, 48).bfloat16()
    bias, x = torch.randn(37).bfloat16(), torch.randn(5, 48).bfloat16()
    fused.assign({"weight": dense.clone(), "bias": bias})
    assert torch.equal(fused.weight.dense(), dense)
    assert fused.num_bytes == fused.weight.num_bytes + bias.nbytes
    assert fused.weight.num_bytes >= dense.nbytes  # panels may be padded
    expected = x.double() @ dense.double().T + bias.double()
    assert torch.allclose(fused(x).double(), expected, rtol=2**-7, atol=2**-5)


def test_random_models_repeat_by_seed():
    first, again, other = (random_model("tiny", "float32", "cpu", seed).model for seed in (1, 1, 2))
    assert torch.equal(first.embed.weight, again.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)
    weight = first.layers[0].mixer.qkv.weight.dense()
    assert abs(weight.std().item() * 256**0.5 - 1) < 0.02
    assert not torch.equal(weight[0], weight[1])
    with pytest.raises(ModelLoadError, match="unknown model shape 'huge': choose tiny, "):
        random_model("huge")


@pytest.mark.parametrize(
    ("name", "stored", "fast", "expected"),
    [
        ("auto", "bfloat16", True, torch.bfloat16),
        ("auto", "float16", True, torch.bfloat16),
        ("auto", "bfloat16", False, torch.float32),
        ("auto", "float32", True, torch.float32),
        ("float16", "float32", True, torch.float16),
        ("bfloat16", "float32", False, torch.bfloat16),
    ],
)
def test_choice_of_dtype(name, stored, fast, expected, monkeypatch):
    monkeypatch.setattr(device, "fast_bfloat16", lambda _: fast)
    assert device.choose_dtype(name, stored, torch.device("cpu")) == expected


def test_unknown_dtype_and_device():
    with pytest.raises(ModelLoadError, match="unknown dtype 'int3'"):
        device.choose_dtype("int3", "float32", torch.device("cpu"))
    with pytest.raises(ModelLoadError, match="unknown device 'abacus'"):
        device.choose_device("abacus")
    with pytest.raises(ModelLoadError, match="unknown device 'cpu:x'"):
        device.choose_device("cpu:x")


def assigned(module):
    """The module with random weights, and these by name."""
    tensors = {name: torch.randn(slot.shape) for name, slot in module.slots().items()}
    module.assign(dict(tensors))
    return module, tensors


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_adds_to_the_residual_stream(bias):
    norm, tensors = assigned(make_norm(NormSpec(1e-5, "layer", bias), 12))
    x, residual = torch.randn(2, 3, 12)
    normed, stream = norm(x, residual)
    assert torch.equal(stream, x + residual)
    expected = torch.nn.functional.layer_norm(x + residual, (12,), tensors["weight"], tensors.get("bias"), 1e-5)
    torch.testing.assert_close(normed, expected)
    started, stream = norm(x, None)
    assert stream is x
    torch.testing.assert_close(started, norm(x, torch.zeros_like(x))[0])


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_ungated_feed_forward(name):
    mlp = make_ffn(MlpSpec(20, name, gated=False, bias=True), 12)
    (_, up), (_, down) = assigned(mlp.up), assigned(mlp.down)
    x = torch.randn(3, 12)
    expected = ACT2FN[name](x @ up["weight"].T + up["bias"]) @ down["weight"].T + down["bias"]
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_gated_feed_forward(name):
    mlp = make_ffn(MlpSpec(20, name), 12)
    (_, gate_up), (_, down) = assigned(mlp.gate_up), assigned(mlp.down)
    x = torch.randn(3, 12)
    gate, up = (x @ gate_up["weight"].T).chunk(2, dim=-1)
    torch.testing.assert_close(mlp(x), (ACT2FN[name](gate) * up) @ down["weight"].T)


@pytest.mark.parametrize("gated", [True, False])
def test_unknown_activation(gated):
    with pytest.raises(ModelLoadError, match="'wobble'"):
        make_ffn(MlpSpec(20, "wobble", gated), 12)
