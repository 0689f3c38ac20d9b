"""Reading config.json and generation_config.json, and refusing what they should not say."""

import json
import subprocess
import sys

import pytest

from sirocco.runtime.config import Fields, make_config, read_config, rope_parameters
from sirocco.runtime.errors import ModelLoadError, RequestError
from sirocco.runtime.request import SamplingParams

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


@pytest.mark.parametrize("modern", [{}, {"rope_type": "default", "rope_theta": 1e6}])
def test_a_scaling_added_by_hand_holds_beside_the_modern_spelling(modern):
    """As model cards say to do, in a file that transformers 5 wrote."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    hf = MINIMAL | {"rope_parameters": modern, "rope_scaling": scaling}
    rope = rope_parameters(Fields(hf))
    assert rope.string("rope_type") == "yarn" and rope.number("rope_theta", 1e4) == modern.get("rope_theta", 1e4)
    assert make_config(hf).max_model_len == 128
    for empty in (None, {}):
        rope = rope_parameters(Fields(MINIMAL | {"rope_parameters": {"rope_type": "linear"}, "rope_scaling": empty}))
        assert rope.string("rope_type") == "linear"


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
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [1, -2]}, "eos_token_id"),
        ({"dtype": 16}, "dtype"),
    ],
)
def test_wrong_field_is_named(tmp_path, changes, named):
    with pytest.raises(ModelLoadError, match=r"^config\.json: ") as caught:
        read_config(write(tmp_path, MINIMAL | changes))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": "100"}, "vocab_size must be an integer"),
        ({"vocab_size": True}, "vocab_size must be an integer"),
        ({"vocab_size": 0}, "vocab_size must be between"),
        ({"vocab_size": 10**30}, "vocab_size must be between"),
        ({"max_position_embeddings": [1]}, "max_position_embeddings"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be between"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_scaling: factor must be a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "rope_scaling: factor must be a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, "rope_scaling: factor"),
    ],
)
def test_wrong_size_is_named_when_it_is_asked_for(changes, named):
    config = make_config(MINIMAL | changes)
    with pytest.raises(ModelLoadError, match=r"^config\.json: ") as caught:
        _ = (config.vocab_size, config.max_model_len)
    assert named in str(caught.value)


def test_architecture_in_place_of_the_one_named():
    assert make_config(MINIMAL, architecture="Qwen3ForCausalLM").architecture == "Qwen3ForCausalLM"
    assert make_config(MINIMAL | {"architectures": None}, architecture="Other").architecture == "Other"


GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "torch_dtype": "bfloat16",
    "eos_token_id": [1, 106],
    "text_config": {"hidden_size": 2560, "model_type": "gemma3_text", "head_dim": None, "num_hidden_layers": 34},
    "vision_config": {"hidden_size": 1152},
}


def test_text_part_of_several_modalities():
    """As published: fields that the text part leaves out have the values of its class, others are the whole's."""
    config = make_config(GEMMA3)
    assert (config.architecture, config.whole) == ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    assert (config.vocab_size, config.max_model_len, config.dtype) == (262_208, 131_072, "bfloat16")
    assert config.eos_token_ids == (1, 106)
    fields = config.fields
    assert (fields.integer("hidden_size"), fields.integer("head_dim")) == (2560, 256)
    assert make_config(GEMMA3, architecture="Gemma2ForCausalLM").architecture == "Gemma2ForCausalLM"


def test_the_whole_says_where_answers_end_before_its_text_part_does():
    text_config = GEMMA3["text_config"] | {"eos_token_id": 1}
    assert make_config(GEMMA3 | {"text_config": text_config}).eos_token_ids == (1, 106)
    assert make_config(GEMMA3 | {"text_config": text_config, "eos_token_id": None}).eos_token_ids == (1,)


@pytest.mark.parametrize(("whole", "text", "tied"), [(True, False, True), (False, True, True), (False, False, False)])
def test_tied_where_either_part_says_so(whole, text, tied):
    text_config = GEMMA3["text_config"] | {"tie_word_embeddings": text}
    config = make_config(GEMMA3 | {"tie_word_embeddings": whole, "text_config": text_config})
    assert config.fields.boolean("tie_word_embeddings") is tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "text_config is missing"),
        ({"text_config": "gemma3_text"}, "text_config must be an object"),
        ({"text_config": {"model_type": "t5"}}, "text_config: model_type 't5' is not supported; known are gemma3_text"),
        ({"text_config": {"model_type": 3}}, "text_config: model_type must be a string"),
    ],
)
def test_wrong_text_part(changes, message):
    with pytest.raises(ModelLoadError, match=rf"^config\.json: {message}"):
        make_config(GEMMA3 | changes)


def test_faults_of_a_text_part_say_where_they_are():
    config = make_config(GEMMA3 | {"text_config": {"hidden_size": "wide"}})
    with pytest.raises(ModelLoadError, match=r"^config\.json: text_config: hidden_size must be an integer"):
        config.fields.integer("hidden_size")


def test_wrong_generation_field_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"^generation_config\.json: temperature must be a finite number, got nan"):
        read_config(write(tmp_path, MINIMAL, '{"temperature": NaN}'))


@pytest.mark.parametrize(
    "recommended",
    [
        *({"temperature": value} for value in (-1, 0, 100, 101, 1e300)),
        *({"top_p": value} for value in (-0.1, 0, 1, 1.1)),
        *({"top_k": value} for value in (-2, -1, 0, 5, 2**40)),
        *({"min_p": value} for value in (0, 1, 2)),
        *({"repetition_penalty": value} for value in (-1, 0, 1e-3, 1e3, 1e4)),
    ],
    ids=str,
)
def test_recommended_sampling_is_within_the_limits_of_requests(recommended):
    (name,) = recommended
    try:
        generation = make_config(MINIMAL, recommended).generation
    except ModelLoadError as error:
        assert str(error).startswith(f"generation_config.json: {name} must be between")
        with pytest.raises(RequestError):
            SamplingParams(**recommended)
    else:
        SamplingParams(**{name: getattr(generation, name)})


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\x80", "[" * 100_000, '{"a": 1} {}'])
def test_broken_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelLoadError, match=r"^config\.json (is not valid JSON|must hold a JSON object)"):
        read_config(tmp_path)


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        read_config(tmp_path)


def test_torch_is_not_imported():
    modules = "sirocco.runtime.async_engine, sirocco.runtime.hub, sirocco.runtime.process_client"
    names = "from sirocco.runtime.models.registry import class_name; class_name('qwen3')"  # imports every family
    code = f"import {modules}, sys; {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
