"""Reading config.json and generation_config.json, and refusing what they should not say."""

import json
import subprocess
import sys

import pytest

from sirocco.runtime.config import Fields, make_config, read_config, rope_parameters
from sirocco.runtime.errors import ModelLoadError

MINIMAL = {"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "max_position_embeddings": 64}


def write(folder, config, generation=None):
    for name, values in (("config.json", config), ("generation_config.json", generation)):
        if values is not None:
            (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def test_reads_both_files(tmp_path):
    config = read_config(
        write(
            tmp_path,
            MINIMAL | {"torch_dtype": "bfloat16", "eos_token_id": 3},
            {"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 9},
        )
    )
    assert (config.architecture, config.vocab_size, config.max_model_len) == ("LlamaForCausalLM", 100, 64)
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (5, 6)
    generation = config.generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.6, 20, 0.95)
    assert (generation.min_p, generation.repetition_penalty, generation.max_new_tokens) == (None, None, 9)


def test_eos_of_config_where_generation_config_says_nothing(tmp_path):
    assert read_config(write(tmp_path, MINIMAL | {"eos_token_id": 3}, {"top_k": 5})).eos_token_ids == (3,)
    assert make_config(MINIMAL).eos_token_ids == ()


@pytest.mark.parametrize(("do_sample", "temperature"), [(False, 0.0), (True, 0.6), (None, 0.6)])
def test_not_sampling_means_temperature_zero(do_sample, temperature):
    generation = {"temperature": 0.6} | ({} if do_sample is None else {"do_sample": do_sample})
    assert make_config(MINIMAL, generation).generation.temperature == temperature


@pytest.mark.parametrize("spelling", [{"dtype": "float16"}, {"torch_dtype": "float16"}, {"dtype": "torch.float16"}])
def test_spellings_of_dtype(spelling):
    assert make_config(MINIMAL | spelling).dtype == "float16"


def test_constants_outside_of_json_are_accepted(tmp_path):
    text = json.dumps(MINIMAL)[:-1] + ', "time_step_limit": [0.0, Infinity]}'
    assert read_config(write(tmp_path, text)).vocab_size == 100


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, 64),
        ({"rope_scaling": None, "rope_theta": 1e6}, 64),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, 256),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}}, 64),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}, "original_max_position_embeddings": 8}, 64),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 64),
    ],
)
def test_max_model_len(rope, expected):
    assert make_config(MINIMAL | rope).max_model_len == expected


def test_both_spellings_of_rope_settings_read_alike():
    hub_era = {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 64}
    modern = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5}, "max_position_embeddings": 64}
    for hf in (hub_era, modern):
        rope = rope_parameters(Fields(hf))
        assert (rope.string("rope_type"), rope.number("rope_theta"), rope.number("factor")) == ("yarn", 5e5, 4.0)
        assert rope.integer("original_max_position_embeddings") == 64


def test_rope_settings_per_layer_type():
    settings = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    fields = Fields({"rope_parameters": settings})
    assert rope_parameters(fields, "full_attention").number("rope_theta") == 1e6
    assert rope_parameters(fields, "sliding_attention").number("rope_theta") == 1e4
    with pytest.raises(ModelLoadError, match="chunked_attention is missing"):
        rope_parameters(fields, "chunked_attention")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": None}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": "100"}, "vocab_size must be an integer"),
        ({"vocab_size": True}, "vocab_size must be an integer"),
        ({"vocab_size": 0}, "vocab_size must be between"),
        ({"vocab_size": 10**30}, "vocab_size must be between"),
        ({"max_position_embeddings": [1]}, "max_position_embeddings"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [1, -2]}, "eos_token_id"),
        ({"dtype": 16}, "dtype"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_scaling: factor must be a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, "rope_scaling: factor"),
    ],
)
def test_wrong_field_is_named(tmp_path, changes, named):
    with pytest.raises(ModelLoadError, match=r"^config\.json: ") as caught:
        read_config(write(tmp_path, MINIMAL | changes))
    assert named in str(caught.value)


def test_wrong_generation_field_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"^generation_config\.json: temperature must be a finite number, got nan"):
        read_config(write(tmp_path, MINIMAL, '{"temperature": NaN}'))


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\x80", "[" * 100_000, '{"a": 1} {}'])
def test_broken_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelLoadError, match=r"^config\.json (is not valid JSON|must hold a JSON object)"):
        read_config(tmp_path)


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        read_config(tmp_path)


def test_torch_is_not_imported():
    modules = "sirocco.runtime.config, sirocco.runtime.hub, sirocco.runtime.models.spec, sirocco.runtime.models.qwen"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
