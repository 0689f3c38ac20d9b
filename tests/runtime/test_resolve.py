"""From a prompt and parameters to what the engine is asked for: the room that is left, seeds, and what is refused."""

import pytest

from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ContextLengthError, RequestError
from sirocco.runtime.request import MAX_SEED, SamplingParams
from sirocco.runtime.resolve import MIN_TOP_P, resolve_request
from sirocco.runtime.wire import EngineInfo, EngineRequest

INFO = EngineInfo("tiny", 100, 1000, 16, 10, 1, 8, 8, "cpu", "float32", 0, 0.0)
CONFIG = make_config({"architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "max_position_embeddings": 100})


def resolve(length: int, params: SamplingParams) -> EngineRequest:
    return resolve_request(1, range(length), params, CONFIG, INFO)


@pytest.mark.parametrize(
    ("length", "max_tokens", "kept", "room"),
    [
        (60, 40, 60, 40),
        (61, 40, 61, 39),  # fits, so it stays whole
        (99, 40, 99, 1),
        (100, 40, 60, 40),
        (500, 40, 60, 40),
        (99, None, 99, 1),
        (500, None, 99, 1),
        (30, 10**6, 30, 70),  # what is generated may take more than half where the prompt leaves it
        (50, 10**6, 50, 50),
        (51, 10**6, 51, 49),
        (500, 10**6, 50, 50),
    ],
)
def test_a_prompt_that_is_too_long_is_cut_to_leave_room(
    length: int, max_tokens: int | None, kept: int, room: int
) -> None:
    request = resolve(length, SamplingParams(max_tokens=max_tokens, truncate_prompt=True))
    assert request.prompt_token_ids == list(range(length))[-kept:]
    assert request.sampling.max_tokens == room


def test_a_prompt_is_whole_unless_it_may_be_cut() -> None:
    assert resolve(99, SamplingParams(max_tokens=40)).sampling.max_tokens == 1
    with pytest.raises(ContextLengthError):
        resolve(100, SamplingParams(max_tokens=40))


@pytest.mark.parametrize("asked", [0, 0.0, 1e-300])
def test_no_share_of_the_probability_is_the_best_token_alone(asked: float) -> None:
    assert resolve(3, SamplingParams(top_p=asked)).sampling.top_p == MIN_TOP_P
    recommended = make_config({"architectures": ["LlamaForCausalLM"], "vocab_size": 1000}, {"top_p": asked})
    assert resolve_request(1, [1], SamplingParams(), recommended, INFO).sampling.top_p == MIN_TOP_P
    assert resolve_request(1, [1], SamplingParams(top_p=0.5), recommended, INFO).sampling.top_p == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_token_ids", [5] * 257), ("stop_token_ids", [1000]), ("cache_salt", "x" * 1025)],
    ids=["many", "outside", "long"],
)
def test_what_each_choice_would_keep_is_bounded(name: str, value: object) -> None:
    with pytest.raises(RequestError) as refused:
        resolve(3, SamplingParams(n=128, **{name: value}))
    assert refused.value.param == name


@pytest.mark.parametrize("name", ["n", "priority", "presence_penalty", "frequency_penalty"])
def test_what_has_a_value_in_every_request_cannot_be_none(name: str) -> None:
    with pytest.raises(RequestError, match="None") as refused:
        SamplingParams(**{name: None})
    assert refused.value.param == name


def test_what_each_choice_keeps_may_be_as_large_as_its_bound() -> None:
    request = resolve(3, SamplingParams(stop_token_ids=[999] * 256, cache_salt="x" * 1024, ignore_eos=True))
    assert request.sampling.stop_token_ids == (999,) * 256


@pytest.mark.parametrize("seed", [-MAX_SEED, -1, 0, 1, MAX_SEED - 1])
def test_seeds_below_zero_become_others(seed: int) -> None:
    resolved = resolve(1, SamplingParams(seed=seed)).sampling.seed
    assert 0 <= resolved < MAX_SEED
    assert seed < 0 or resolved == seed


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop": 5},
        {"stop": {"a": "b"}},
        {"stop": [3]},
        {"stop_token_ids": "12"},
        {"stop_token_ids": 7},
        {"logit_bias": [1]},
    ],
)
def test_values_of_other_types_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**wrong)
    assert refused.value.param == next(iter(wrong))


def test_no_stops_may_be_said_by_null() -> None:
    params = SamplingParams(stop=None, stop_token_ids=None, seed=1)
    assert params.stop_strings == ()
    assert resolve(3, params).sampling == resolve(3, SamplingParams(seed=1)).sampling
