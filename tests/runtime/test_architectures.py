"""What families read from their configs beyond what the parity tests show, and regimes of length-dependent rope."""

import copy

import pytest
import torch
from transformers import Gemma3TextConfig

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.registry import build_spec
from sirocco.runtime.models.rope import Rope
from sirocco.runtime.models.spec import LinearScaling, RopeSpec, regime_limit, rope_regime

CONFIG = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1}
LATENT = EXPERTS | {
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}


def spec(architecture, **changes):
    return build_spec(make_config(CONFIG | {"architectures": [architecture]} | changes))


def mixers(architecture, **changes):
    return [block.mixer for block in spec(architecture, **changes).layers]


def windows(architecture, **changes):
    return [mixer.window for mixer in mixers(architecture, **changes)]


@pytest.mark.parametrize(
    "architecture", ["GemmaForCausalLM", "Gemma2ForCausalLM", "Starcoder2ForCausalLM", "SmolLM3ForCausalLM"]
)
def test_tied_where_the_config_leaves_it_out(architecture):
    assert spec(architecture).tied_embeddings
    assert not spec(architecture, tie_word_embeddings=False).tied_embeddings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu"}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_pytorch_tanh"),
        ({"hidden_act": "silu"}, "silu"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu_new"}, "gelu_new"),
    ],
)
def test_gemma_means_the_approximate_gelu(settings, expected):
    assert spec("GemmaForCausalLM", **settings).layers[0].ffn.activation == expected


def test_gemma2_bounds_unless_null():
    model = spec("Gemma2ForCausalLM")
    assert (model.logit_softcap, model.layers[0].mixer.softcap) == (30.0, 50.0)
    model = spec("Gemma2ForCausalLM", final_logit_softcapping=None, attn_logit_softcapping=None)
    assert (model.logit_softcap, model.layers[0].mixer.softcap) == (None, None)


@pytest.mark.parametrize(
    ("architecture", "settings", "expected"),
    [
        ("Gemma2ForCausalLM", {"sliding_window": 7}, [7, None, 7, None]),
        ("Gemma3ForCausalLM", {"sliding_window": 7, "sliding_window_pattern": 3}, [7, 7, None, 7]),
        ("Gemma3ForCausalLM", {"sliding_window": 7, "layer_types": ["full_attention"] * 4}, [None] * 4),
        ("Phi3ForCausalLM", {"sliding_window": 7}, [7] * 4),
        ("Phi3ForCausalLM", {}, [None] * 4),
        ("Starcoder2ForCausalLM", {"sliding_window": 7}, [7] * 4),
        ("SmolLM3ForCausalLM", {"sliding_window": 7}, [None] * 4),
        ("SmolLM3ForCausalLM", {"sliding_window": 7, "use_sliding_window": True}, [None, None, None, 7]),
    ],
)
def test_windows(architecture, settings, expected):
    assert windows(architecture, **settings) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [True, True, True, False]),
        ({"no_rope_layer_interval": 2}, [True, False, True, False]),
        ({"no_rope_layers": [0, 1, 1, 0, 1]}, [False, True, True, False]),
    ],
)
def test_smollm3_layers_without_rope(settings, expected):
    ropes = [mixer.rope for mixer in mixers("SmolLM3ForCausalLM", **settings)]
    assert [rope is not None for rope in ropes] == expected
    assert {rope.theta for rope in ropes if rope} == {2e6}


def test_gemma3_rope_in_the_older_spelling():
    settings = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"type": "linear", "factor": 8.0}}
    ropes = [mixer.rope for mixer in mixers("Gemma3ForCausalLM", sliding_window_pattern=2, **settings)]
    assert ropes == [RopeSpec(2e4, 4), RopeSpec(5e5, 4, scaling=LinearScaling(8.0))] * 2


@pytest.mark.parametrize(
    ("full", "sliding", "others"),
    [
        ({"rope_theta": 5e5}, {}, {"rope_theta": 1e6}),
        ({"rope_theta": 5e5}, {}, {"rope_theta": 1e6, "rope_local_base_freq": 5e3}),
        ({}, {"rope_theta": 1e4}, {"rope_theta": 2e6}),
        ({"rope_theta": 1e6}, {"rope_theta": 1e4}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_gemma3_rope_in_both_spellings_at_once(full, sliding, others):
    nested = {"full_attention": full, "sliding_attention": sliding}
    settings = {"rope_parameters": {name: {"rope_type": "default", **own} for name, own in nested.items()}} | others
    expected = [
        RopeSpec(own["rope_theta"], 4, scaling=LinearScaling(own["factor"]) if "factor" in own else None)
        for own in Gemma3TextConfig(num_hidden_layers=2, **copy.deepcopy(settings)).rope_parameters.values()
    ]
    ropes = [mixer.rope for mixer in mixers("Gemma3ForCausalLM", sliding_window_pattern=2, **settings)]
    assert ropes == expected[::-1] * 2


@pytest.mark.parametrize(
    ("architecture", "rotary_dim", "interleaved"),
    [("PhiForCausalLM", 2, False), ("Glm4ForCausalLM", 2, True), ("Phi3ForCausalLM", 4, False)],
)
def test_share_of_a_head_that_is_turned(architecture, rotary_dim, interleaved):
    rope = mixers(architecture)[0].rope
    assert (rope.rotary_dim, rope.interleaved) == (rotary_dim, interleaved)
    assert mixers(architecture, partial_rotary_factor=1.0)[0].rope.rotary_dim == 4


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("PhiForCausalLM", {"qk_layernorm": "yes"}, "qk_layernorm must be true or false"),
        ("PhiForCausalLM", {"layer_norm_eps": "small"}, "layer_norm_eps must be a finite number"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": 0}, "attn_logit_softcapping must be between"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be between"),
        ("Gemma2ForCausalLM", {"layer_types": ["global"] * 4}, "layer_types holds 'global'"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": {}}}, "sliding_attention is missing"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "such a model embeds and cannot generate"),
        ("Qwen2ForCausalLM", {"is_causal": False}, "is_causal says that .* such a model embeds and cannot generate"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "no_rope_layers must be a list of 0 and 1 for each of 4"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers must be a list of 0 and 1"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": "all"}, "no_rope_layers must be a list of"),
        ("Starcoder2ForCausalLM", {"use_bias": "yes"}, "use_bias must be true or false"),
        ("Starcoder2ForCausalLM", {"intermediate_size": None}, "intermediate_size is missing"),
        ("Glm4ForCausalLM", {"partial_rotary_factor": 0.25}, "partial_rotary_factor turns 1 of 4 dimensions"),
        ("Phi3ForCausalLM", {"rope_scaling": LONGROPE | {"long_factor": [1.0]}}, "long_factor must be a list of 2"),
        ("Phi3ForCausalLM", {"rope_scaling": LONGROPE | {"short_factor": [1.0, 0]}}, "short_factor must be between"),
        ("Glm4MoeForCausalLM", EXPERTS | {"n_group": 3}, r"n_group \(3\) does not divide n_routed_experts \(4\)"),
        ("Glm4MoeForCausalLM", EXPERTS | {"use_qk_norm": 1}, "use_qk_norm must be true or false"),
        ("Glm4MoeLiteForCausalLM", LATENT, "mlp_layer_types must list the dense layers first"),
    ],
)
def test_wrong_config_is_refused(architecture, changes, message):
    with pytest.raises(ModelLoadError, match=message):
        spec(architecture, **changes)


def test_regimes_of_longrope():
    model = spec("Phi3ForCausalLM", rope_scaling=LONGROPE, original_max_position_embeddings=32)
    assert [rope_regime(model, length) for length in (1, 32, 33, 64)] == [0, 0, 1, 1]
    assert [regime_limit(model, regime) for regime in (0, 1)] == [32, None]


def test_regimes_of_dynamic_rope():
    model = spec("LlamaForCausalLM", rope_scaling={"type": "dynamic", "factor": 4.0})
    assert model.max_model_len == 256
    assert [rope_regime(model, length) for length in (1, 64, 65, 200)] == [0, 0, 65, 200]
    assert [regime_limit(model, regime) for regime in (0, 65)] == [64, 130]


def test_other_ropes_have_one_regime():
    model = spec("LlamaForCausalLM", rope_scaling={"type": "yarn", "factor": 4.0})
    assert rope_regime(model, 10**6) == 0
    assert regime_limit(model, 0) is None


@pytest.mark.parametrize(
    "scaling", [LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}, {"type": "dynamic", "factor": 4.0}]
)
def test_tables_follow_the_regime_of_each_token(scaling):
    (rope,) = spec("Phi3ForCausalLM", rope_scaling=scaling).ropes
    tables = Rope(rope, torch.device("cpu"))
    positions = torch.tensor([5, 5, 40])
    long = 1 if scaling["type"] == "longrope" else 90
    mixed = tables(positions, torch.tensor([0, long, long]))
    short, longer = tables(positions), tables(positions, torch.full((3,), long))
    assert torch.equal(mixed.cos, torch.cat([short.cos[:1], longer.cos[1:]]))
    assert torch.equal(mixed.sin, torch.cat([short.sin[:1], longer.sin[1:]]))
    assert not torch.equal(short.cos, longer.cos)
