"""From a prompt and `SamplingParams` to an `EngineRequest`: every default filled in, every limit checked."""

import random
from array import array
from collections.abc import Sequence
from typing import TypeVar

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import ContextLengthError, RequestError
from sirocco.runtime.request import MAX_SALT_LENGTH, MAX_SEED, SamplingParams
from sirocco.runtime.wire import EngineInfo, EngineRequest, Sampling

_T = TypeVar("_T", int, float)
MIN_TOP_P = 1e-6  # the best token alone, which is what 0 means to those who write it


def resolve_request(
    id: int,
    prompt: Sequence[int],
    params: SamplingParams,
    config: ModelConfig,
    info: EngineInfo,
    stop_ids: Sequence[int] = (),
    param: str = "prompt",
) -> EngineRequest:
    """Raises `RequestError` or `ContextLengthError` for what the engine could not compute.

    `stop_ids` are the tokens of stop strings that are special, and so never seen in the text. `param` is what errors
    call the prompt.
    """
    prompt = _fit(prompt, params, info, param)
    _check_salt(params.cache_salt)
    return EngineRequest(
        id, prompt, _sampling(params, len(prompt), config, info, stop_ids), params.n, params.priority, params.cache_salt
    )


def _fit(prompt: Sequence[int], params: SamplingParams, info: EngineInfo, param: str) -> list[int]:
    """The prompt, checked; with `truncate_prompt` the end of one that is too long, leaving room for `max_tokens`.

    That room is half of the context at most. A prompt that fits stays whole, however little it leaves.
    """
    if not prompt:
        raise RequestError("the prompt is empty", param)
    limit = info.max_model_len
    if params.truncate_prompt and len(prompt) >= limit:
        prompt = prompt[-(limit - min(params.max_tokens or 1, limit // 2)) :]
    if len(prompt) >= limit:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens, and the context of {limit} must hold it and at least one more", param
        )
    return checked_ids(prompt, info.vocab_size, param)


def checked_ids(given: Sequence[int], vocab_size: int, param: str) -> list[int]:
    """Token ids as plain integers. Raises `RequestError` for what is none or lies outside the vocabulary."""
    try:
        ids = array("q", list(given)).tolist()
    except TypeError:
        raise RequestError("token ids must be integers", param) from None
    except OverflowError:
        raise RequestError(f"a token id is outside the vocabulary of {vocab_size}", param) from None
    low, high = min(ids, default=0), max(ids, default=0)
    if low < 0 or high >= vocab_size:
        raise RequestError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}", param)
    return ids


def _check_salt(salt: str | None) -> None:
    """What cannot be encoded cannot be hashed, nor sent; each choice hashes it."""
    if salt is None:
        return
    try:
        str.encode(salt)
    except (TypeError, UnicodeEncodeError):
        raise RequestError("cache_salt must be a text of valid Unicode", "cache_salt") from None
    if len(salt) > MAX_SALT_LENGTH:
        raise RequestError(f"cache_salt may have {MAX_SALT_LENGTH} characters, got {len(salt)}", "cache_salt")


def _sampling(
    params: SamplingParams, prompt_len: int, config: ModelConfig, info: EngineInfo, stop_ids: Sequence[int]
) -> Sampling:
    defaults = config.generation
    room = info.max_model_len - prompt_len
    eos = () if params.ignore_eos else config.eos_token_ids
    for name, given in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids or ())):
        for token_id in given:
            if token_id >= info.vocab_size:
                raise RequestError(f"token id {token_id} is outside the vocabulary of {info.vocab_size}", name)
    return Sampling(
        max_tokens=min(_first(params.max_tokens, defaults.max_new_tokens, room), room),
        temperature=_first(params.temperature, defaults.temperature, 1.0),
        top_k=max(_first(params.top_k, defaults.top_k, 0), 0),
        top_p=max(_first(params.top_p, defaults.top_p, 1.0), MIN_TOP_P),
        min_p=_first(params.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(params.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=random.getrandbits(62) if params.seed is None else params.seed % MAX_SEED,
        stop_token_ids=(*eos, *(params.stop_token_ids or ()), *stop_ids),
        logit_bias=params.logit_bias,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )


def _first(asked: _T | None, recommended: _T | None, neutral: _T) -> _T:
    if asked is not None:
        return asked
    return neutral if recommended is None else recommended
