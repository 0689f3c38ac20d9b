"""Whatever a config.json holds, it is read or refused in one sentence that names the field: never another exception."""

from collections.abc import Iterator
from functools import cache

import pytest

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.registry import architectures, build_spec

DENSE = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 16}
LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
ROPES = {
    "linear": {"factor": 2.0},
    "llama3": ROPE | {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": ROPE | {"factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5},
    "dynamic": {"factor": 2.0},
    "longrope": ROPE | LONGROPE,
}
MOE = DENSE | {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_intermediate_size": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}
LATENT = MOE | {"kv_lora_rank": 8, "q_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 8, "v_head_dim": 4}
MAMBA = MOE | {"mamba_n_heads": 4, "layer_types": ["mamba", "attention"], "position_embedding_type": "rope"}

CONFIGS = {
    "DeepseekV2ForCausalLM": LATENT | {"topk_method": "group_limited_greedy"},
    "DeepseekV3ForCausalLM": LATENT,
    "Gemma2ForCausalLM": DENSE,
    "Gemma3ForCausalLM": DENSE,
    "GemmaForCausalLM": DENSE,
    "Glm4ForCausalLM": DENSE,
    "Glm4MoeForCausalLM": MOE,
    "Glm4MoeLiteForCausalLM": LATENT,
    "GptOssForCausalLM": MOE,
    "GraniteMoeHybridForCausalLM": MAMBA,
    "LlamaForCausalLM": DENSE,
    "MistralForCausalLM": DENSE,
    "MixtralForCausalLM": MOE,
    "Phi3ForCausalLM": DENSE,
    "PhiForCausalLM": DENSE | {"partial_rotary_factor": 1.0},
    "PhiMoEForCausalLM": MOE,
    "PhimoeForCausalLM": MOE,
    "Qwen2ForCausalLM": DENSE,
    "Qwen3ForCausalLM": DENSE,
    "Qwen3MoeForCausalLM": MOE,
    "SmolLM3ForCausalLM": DENSE,
    "Starcoder2ForCausalLM": DENSE,
}
NUMBERS = (-1, 0, 1, 3, 0.5, 1e-300, 1e300, float("nan"), 2**30, 2**31 - 1, 10**30)
WRONG = (None, True, "x", *NUMBERS, [], [1], [None], ["x", "x"], {}, {"a": 1})


class Recorder(dict):
    """A config that notes which of its fields somebody asks for, there or not."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = set()

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.asked.add(name)
        return super().__contains__(name)


make_decoder = cache(Decoder)


def read(hf):
    make_decoder(build_spec(make_config(hf)))


def variants(hf) -> Iterator[tuple[str, object]]:
    """Each field that is asked for, with each wrong value in it, or without it."""
    recorder = Recorder(hf)
    read(recorder)
    for field in sorted(recorder.asked):
        for value in WRONG:
            if value != hf.get(field):
                yield field, value


def assert_read_or_refused(hf, field):
    try:
        read(hf)
    except ModelLoadError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1000, message
    except Exception as error:
        raise AssertionError(f"{field} = {hf.get(field)!r} raises {error!r}") from error


@pytest.mark.parametrize("architecture", CONFIGS)
def test_wrong_fields(architecture):
    hf = CONFIGS[architecture] | {"architectures": [architecture]}
    for field, value in variants(hf):
        assert_read_or_refused(hf | {field: value}, field)


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "DeepseekV3ForCausalLM"])
def test_wrong_rope_settings(architecture, kind):
    hf = CONFIGS[architecture] | {"architectures": [architecture]}
    settings = ROPES[kind] | {"rope_type": kind}
    read(hf | {"rope_parameters": settings})
    for field in (*settings, "partial_rotary_factor", "attention_factor", "truncate"):
        for value in WRONG:
            assert_read_or_refused(hf | {"rope_parameters": settings | {field: value}}, f"{kind}: {field}")


def test_every_architecture_is_tried():
    assert CONFIGS.keys() == architectures().keys()
