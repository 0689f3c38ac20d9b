"""What each sampling parameter does to a step's tokens, slot by slot."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from sirocco.runtime.plan import Admission
from sirocco.runtime.sampler import Sampler
from sirocco.runtime.wire import Sampling

LOGITS = [0.0, 5.0, 4.6, 1.0, -3.0, 0.0, 0.0, 0.0]  # the best is 1, then 2


def admitted(sampler: Sampler, slot: int, prompt: list[int], generated: list[int], **params: Any) -> None:
    sampling = Sampling(max_tokens=9, **{"temperature": 0.0, "seed": 7} | params)
    sampler.admit(Admission(slot, prompt + generated, len(prompt), sampling, sampling.seed))


def drawn(sampler: Sampler, slots: list[int], position: int = 5, logits: list[float] = LOGITS) -> list[int]:
    rows = torch.tensor([logits] * len(slots))
    return sampler.sample(rows, np.array(slots), np.array([position] * len(slots))).token_ids.tolist()


def sampler_of(slots: int = 3) -> Sampler:
    return Sampler(slots, len(LOGITS), torch.device("cpu"))


@pytest.mark.parametrize(
    ("prompt", "generated", "params", "expected"),
    [
        ([1, 1], [], {}, 1),
        ([1], [], {"repetition_penalty": 1.2}, 2),
        ([3], [1], {"repetition_penalty": 1.2}, 2),
        ([3], [3], {"repetition_penalty": 1.2}, 1),
        ([1, 1], [], {"presence_penalty": 2.0, "frequency_penalty": 2.0}, 1),  # which look at what was generated alone
        ([3], [1], {"presence_penalty": 0.5}, 2),
        ([3], [1, 1], {"presence_penalty": 0.3}, 1),
        ([3], [1], {"frequency_penalty": 0.3}, 1),
        ([3], [1, 1], {"frequency_penalty": 0.3}, 2),
        ([3], [2], {"presence_penalty": -0.5}, 2),
        ([3], [], {"logit_bias": {2: 1.0}}, 2),
        ([3], [], {"logit_bias": {1: -100.0, 2: -100.0}}, 3),
        ([3], [2], {"logit_bias": {2: 1.0}, "presence_penalty": 0.7}, 1),
    ],
)
def test_the_best_token_is_that_of_changed_logits(
    prompt: list[int], generated: list[int], params: dict[str, Any], expected: int
) -> None:
    sampler = sampler_of()
    admitted(sampler, 1, prompt, generated, **params)
    assert drawn(sampler, [1]) == [expected]


def test_a_negative_logit_is_penalised_downwards() -> None:
    sampler = sampler_of()
    admitted(sampler, 0, [1], [], repetition_penalty=2.0)
    assert drawn(sampler, [0], logits=[-1.5, -1.0, -9.0, -9.0, -9.0, -9.0, -9.0, -9.0]) == [0]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, {0, 1, 2}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.4}, {0}),
        ({"min_p": 0.7}, {0}),
        ({"min_p": 0.5}, {0, 1}),
        ({"temperature": 0.01}, {0}),
        ({"temperature": 9.0, "top_p": 0.7}, {0, 1, 2}),
    ],
)
def test_what_filters_leave_is_drawn(params: dict[str, Any], kept: set[int]) -> None:
    """Probabilities of 0.5, 0.3 and 0.2, drawn at many positions."""
    sampler = sampler_of()
    admitted(sampler, 2, [3], [], **{"temperature": 1.0} | params)
    logits = [math.log(0.5), math.log(0.3), math.log(0.2)] + [-math.inf] * 5
    assert {drawn(sampler, [2], position, logits)[0] for position in range(64)} == kept


def test_what_is_drawn_counts_from_then_on() -> None:
    sampler = sampler_of()
    admitted(sampler, 0, [3], [], presence_penalty=1.0)
    admitted(sampler, 1, [3], [])
    assert [drawn(sampler, [1, 0]) for _ in range(3)] == [[1, 1], [1, 2], [1, 1]]


def test_a_slot_forgets_who_had_it() -> None:
    sampler = sampler_of()
    admitted(sampler, 0, [1], [1, 1], repetition_penalty=2.0, frequency_penalty=1.0, logit_bias={3: 90.0}, logprobs=2)
    assert drawn(sampler, [0]) == [3]
    admitted(sampler, 0, [3], [])
    assert drawn(sampler, [0]) == [1]
    admitted(sampler, 0, [3], [], presence_penalty=1.0)
    assert drawn(sampler, [0]) == [1], "penalties are those of its own tokens"


def test_log_probabilities_are_the_models_own() -> None:
    sampler = sampler_of()
    admitted(sampler, 0, [3], [1, 1, 1], logit_bias={2: 50.0}, frequency_penalty=2.0, logprobs=2)
    admitted(sampler, 1, [3], [])
    sampled = sampler.sample(torch.tensor([LOGITS] * 2), np.array([0, 1]), np.array([5, 5]))
    token_ids, logprobs = sampled.copy_to_host().wait()
    expected = torch.tensor(LOGITS).log_softmax(-1)
    assert token_ids == [2, 1] and logprobs is not None
    chosen, other = logprobs
    assert other is None and chosen is not None
    assert chosen.token_id == 2 and chosen.logprob == pytest.approx(expected[2].item())
    assert chosen.top == pytest.approx({1: expected[1].item(), 2: expected[2].item()})


def test_a_seed_and_a_position_tell_the_draw() -> None:
    logits = [0.0] * len(LOGITS)
    draws = []
    for slot, seed in ((0, 7), (2, 7), (1, 8)):
        sampler = sampler_of()
        admitted(sampler, slot, [3], [], temperature=1.0, seed=seed)
        draws.append([drawn(sampler, [slot], position, logits)[0] for position in range(32)])
    assert draws[0] == draws[1] != draws[2]
