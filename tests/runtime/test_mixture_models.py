"""What is wrong with a config or with the experts of a checkpoint is said in one sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.load import load_model
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.models.registry import build_spec
from sirocco.runtime.models.spec import AttentionSpec, MambaSpec, MlpSpec, MoeSpec, SoftmaxRouting

from .tiny_models import num_parameters

COMMON = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
LATENT = {
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
}
CONFIGS = {
    "mixtral": COMMON | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4},
    "qwen": COMMON | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "moe_intermediate_size": 8},
    "phimoe": COMMON | {"architectures": ["PhiMoEForCausalLM"], "num_local_experts": 4},
    "deepseek2": COMMON | LATENT | {"architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": None},
    "deepseek3": COMMON | LATENT | {"architectures": ["DeepseekV3ForCausalLM"], "n_group": 4, "topk_group": 2},
    "gpt_oss": COMMON | {"architectures": ["GptOssForCausalLM"], "num_local_experts": 4},
    "granite": COMMON
    | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "num_local_experts": 4,
        "mamba_n_heads": 4,
        "layer_types": ["mamba", "attention", "mamba"],
    },
}


def spec(name, **changes):
    return build_spec(make_config(CONFIGS[name] | changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral", {"num_local_experts": None}, "num_local_experts is missing"),
        ("mixtral", {"num_experts_per_tok": 5}, r"num_experts_per_tok \(5\) is more than num_local_experts \(4\)"),
        ("qwen", {"num_experts": "many"}, "num_experts must be an integer, got 'many'"),
        ("qwen", {"mlp_only_layers": [0.5]}, "mlp_only_layers must be a list of integers"),
        ("phimoe", {"num_experts_per_tok": 1}, "num_experts_per_tok must be 2 for sparse-mixer routing, got 1"),
        ("deepseek2", {"topk_method": "dice"}, "topk_method is 'dice'; known are greedy and group_limited_greedy"),
        ("deepseek2", {"attention_bias": True}, "attention_bias is not supported without q_lora_rank"),
        ("deepseek2", {"kv_lora_rank": None}, "kv_lora_rank is missing"),
        ("deepseek2", {"qk_rope_head_dim": 3}, "turns 3 of 3 dimensions"),
        ("deepseek3", {"n_group": 3}, r"n_group \(3\) does not divide n_routed_experts \(8\)"),
        ("deepseek3", {"n_group": 8}, r"n_group \(8\) leaves groups of a single expert"),
        ("deepseek3", {"topk_group": 5}, r"topk_group \(5\) is more than n_group \(4\)"),
        ("deepseek3", {"num_experts_per_tok": 5}, r"num_experts_per_tok \(5\) is more than the experts of 2 groups"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ("granite", {"layer_types": ["mamba", "mamba", "magic"]}, "holds 'magic'"),
        ("granite", {"mamba_n_heads": 5}, r"mamba_n_heads \(5\) times mamba_d_head \(6\) is not 32"),
        ("granite", {"mamba_n_groups": 3}, r"mamba_n_groups \(3\) does not divide mamba_n_heads \(4\)"),
        ("granite", {"time_step_limit": [1, 0]}, "time_step_limit must be two numbers, the smaller first"),
        ("granite", {"hidden_act": "gelu"}, "hidden_act must be silu for Mamba layers"),
    ],
)
def test_wrong_config_is_refused(name, changes, message):
    with pytest.raises(ModelLoadError, match=message):
        spec(name, **changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_above_are_right_but_for_the_change(name):
    assert num_parameters(spec(name)) > 0


def test_known_geometry_has_its_number_of_parameters():
    assert num_parameters(build_spec(make_config(SHAPES["qwen3-30b-a3b"]))) == 30_532_122_624


def test_random_weights_fill_what_is_not_in_the_run_dtype(monkeypatch):
    quantised = CONFIGS["gpt_oss"] | {"hidden_size": 32, "intermediate_size": 32, "dtype": "bfloat16"}
    monkeypatch.setitem(SHAPES, "tiny-gpt-oss", quantised | {"quantization_config": {"quant_method": "mxfp4"}})
    ffn = random_model("tiny-gpt-oss", "bfloat16", "cpu").model.layers[0].ffn
    assert ffn.router.weight.dtype == torch.float32
    assert ffn(torch.randn(3, 32).bfloat16()).isfinite().all()


def test_qwen_layers_with_experts():
    def sparse(**changes):
        return [isinstance(block.ffn, MoeSpec) for block in spec("qwen", **changes).layers]

    assert sparse() == [True, True, True]
    assert sparse(decoder_sparse_step=2) == [False, True, False]
    assert sparse(mlp_only_layers=[2]) == [True, True, False]
    first = spec("qwen", decoder_sparse_step=2).layers
    assert isinstance(first[0].ffn, MlpSpec) and first[0].ffn.hidden == 24
    assert isinstance(first[1].ffn, MoeSpec) and first[1].ffn.expert.hidden == 8


def test_deepseek_first_layers_are_dense_and_prediction_layers_unused():
    model = spec("deepseek3", first_k_dense_replace=2, num_nextn_predict_layers=2)
    assert [isinstance(block.ffn, MoeSpec) for block in model.layers] == [False, False, True]
    assert model.unused_weights == ("model.layers.3.", "model.layers.4.")


def test_deepseek2_weights_are_normalised_or_scaled():
    def routing(**changes):
        (*_, block) = spec("deepseek2", routed_scaling_factor=16.0, **changes).layers
        return block.ffn.routing

    assert routing(norm_topk_prob=False) == SoftmaxRouting(scale=16.0)
    assert routing(norm_topk_prob=True) == SoftmaxRouting(normalize=True)


def test_latent_cache_holds_a_latent_and_a_turned_part():
    assert spec("deepseek3").cache_bytes_per_token(2) == 3 * 2 * (8 + 2)


def test_hybrid_layers_and_their_memory():
    model = spec("granite", mamba_d_state=10)
    assert [type(block.mixer) for block in model.layers] == [MambaSpec, AttentionSpec, MambaSpec]
    assert model.cache_bytes_per_token(2) == 2 * 8 * 2
    assert model.cache_bytes_per_request(2) == 2 * (4 * 8 * 10 * 4 + (32 + 20) * 3 * 2)
    assert spec("granite").layers[1].mixer.rope is None


def tensors_of_mixtral(num_experts):
    def layer(i):
        prefix = f"model.layers.{i}"
        yield f"{prefix}.input_layernorm.weight", (16,)
        yield f"{prefix}.post_attention_layernorm.weight", (16,)
        for name, shape in (("q", (16, 16)), ("k", (8, 16)), ("v", (8, 16)), ("o", (16, 16))):
            yield f"{prefix}.self_attn.{name}_proj.weight", shape
        yield f"{prefix}.block_sparse_moe.gate.weight", (4, 16)
        for expert in range(num_experts):
            for name, shape in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16))):
                yield f"{prefix}.block_sparse_moe.experts.{expert}.{name}.weight", shape

    shapes = {"model.embed_tokens.weight": (30, 16), "model.norm.weight": (16,), "lm_head.weight": (30, 16)}
    for i in range(3):
        shapes |= dict(layer(i))
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def write(folder, tensors):
    (folder / "config.json").write_text(json.dumps(CONFIGS["mixtral"] | {"dtype": "float32"}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_experts_arrive_where_they_belong(tmp_path):
    tensors = tensors_of_mixtral(4)
    experts = load_model(write(tmp_path, tensors), device="cpu").model.layers[2].ffn.experts
    for i in range(4):
        w1, w2, w3 = (tensors[f"model.layers.2.block_sparse_moe.experts.{i}.w{n}.weight"] for n in (1, 2, 3))
        assert torch.equal(experts.up.weights[i].dense(), torch.cat((w1, w3)))
        assert torch.equal(experts.down.weights[i].dense(), w2)


@pytest.mark.parametrize(("held", "message"), [(3, "config.json says 4 experts, the weights hold 3"), (6, "hold 6")])
def test_wrong_number_of_experts(tmp_path, held, message):
    with pytest.raises(ModelLoadError, match=message):
        load_model(write(tmp_path, tensors_of_mixtral(held)), device="cpu")


def test_an_expert_that_lacks_a_matrix(tmp_path):
    tensors = tensors_of_mixtral(4)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    with pytest.raises(ModelLoadError, match=r"1 missing \(model.layers.1.block_sparse_moe.experts.3.w2.weight\)"):
        load_model(write(tmp_path, tensors), device="cpu")


def test_an_expert_of_the_wrong_shape(tmp_path):
    tensors = tensors_of_mixtral(4)
    tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"] = torch.randn(16, 23)
    with pytest.raises(ModelLoadError, match=r"experts.3.w2.weight' has the shape \[16, 23\].*asks for \[16, 24\]"):
        load_model(write(tmp_path, tensors), device="cpu")
