"""From a prompt and `SamplingParams` to an `EngineRequest`: every default filled in, every limit checked."""

import random
from collections.abc import Sequence
from typing import TypeVar

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import ContextLengthError, RequestError
from sirocco.runtime.request import SamplingParams
from sirocco.runtime.wire import EngineInfo, EngineRequest, Sampling

_SEED_MASK = 2**63 - 1
_T = TypeVar("_T", int, float)


def resolve_request(
    id: int, prompt: Sequence[int], params: SamplingParams, config: ModelConfig, info: EngineInfo
) -> EngineRequest:
    """Raises `RequestError` or `ContextLengthError` for what the engine could not compute."""
    prompt = _fit(prompt, params, info)
    return EngineRequest(
        id, prompt, _sampling(params, len(prompt), config, info), params.n, params.priority, params.cache_salt
    )


def _fit(prompt: Sequence[int], params: SamplingParams, info: EngineInfo) -> list[int]:
    """The prompt, checked; with `truncate_prompt` its end, leaving room for `max_tokens`."""
    if not prompt:
        raise RequestError("the prompt is empty", "prompt")
    limit = info.max_model_len
    if len(prompt) >= limit:
        if not params.truncate_prompt:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, and the context of {limit} must hold it and at least one more",
                "prompt",
            )
        prompt = prompt[-max(limit - (params.max_tokens or 1), 1) :]
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= info.vocab_size:
        wrong = low if low < 0 else high
        raise RequestError(f"token id {wrong} is outside the vocabulary of {info.vocab_size}", "prompt")
    return list(prompt)


def _sampling(params: SamplingParams, prompt_len: int, config: ModelConfig, info: EngineInfo) -> Sampling:
    defaults = config.generation
    room = info.max_model_len - prompt_len
    stops = tuple(params.stop_token_ids) if params.ignore_eos else (*config.eos_token_ids, *params.stop_token_ids)
    for token_id in params.logit_bias or ():
        if token_id >= info.vocab_size:
            raise RequestError(f"token id {token_id} is outside the vocabulary of {info.vocab_size}", "logit_bias")
    return Sampling(
        max_tokens=min(_first(params.max_tokens, defaults.max_new_tokens, room), room),
        temperature=_first(params.temperature, defaults.temperature, 1.0),
        top_k=max(_first(params.top_k, defaults.top_k, 0), 0),
        top_p=_first(params.top_p, defaults.top_p, 1.0),
        min_p=_first(params.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(params.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=random.getrandbits(62) if params.seed is None else params.seed & _SEED_MASK,
        stop_token_ids=stops,
        logit_bias=params.logit_bias,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )


def _first(asked: _T | None, recommended: _T | None, neutral: _T) -> _T:
    if asked is not None:
        return asked
    return neutral if recommended is None else recommended
