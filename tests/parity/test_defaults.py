"""What config.json leaves out is what transformers takes it for, or refused."""

import json

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.registry import build_spec

from .families import CASES

# Which layers there are and how large: a wrong guess does not fit the weights, so that loading them fails.
SHAPES = {"head_dim", "num_key_value_heads", "q_lora_rank", "n_shared_experts", "first_k_dense_replace"}
UNRELATED = {"architectures", "model_type", "transformers_version"}


def values_of(config):
    return json.loads(config.to_json_string(use_diff=False))


def spec_of(config, values):
    return build_spec(make_config(values | {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]}))


def completed(config, values):
    """The config with what transformers adds; None where it cannot do without what is missing."""
    given = {name: value for name, value in values.items() if name not in UNRELATED}
    if "time_step_limit" in given:  # whose infinity is no JSON
        given["time_step_limit"] = config.time_step_limit
    try:
        return values_of(type(config)(**given))
    except Exception:  # of many types: its own checks, and whatever its arithmetic meets
        return None


@pytest.mark.parametrize("name", CASES)
def test_a_field_that_is_left_out_means_what_transformers_takes_it_for(name):
    config = CASES[name]
    values = values_of(config)
    fields = values.keys() - SHAPES - UNRELATED
    compared = 0
    for field in fields:
        stated = {other: value for other, value in values.items() if other != field}
        whole = completed(config, stated)
        try:
            specs = (spec_of(config, stated), spec_of(config, whole)) if whole else None
        except ModelLoadError:
            continue
        if specs:
            assert specs[0] == specs[1], f"without {field}"
            compared += 1
    assert compared > len(fields) / 2


def test_groups_of_experts_that_are_limited_must_be_given():
    config = CASES["deepseek-v2-groups-yarn"]
    values = values_of(config) | {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
    for field in ("n_group", "topk_group"):
        with pytest.raises(ModelLoadError, match=f"{field} is missing"):
            spec_of(config, {name: value for name, value in values.items() if name != field})
