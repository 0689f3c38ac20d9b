"""What a caller asks for and what it gets back: sampling parameters, results, stream events.

These structs cross the socket between the API process and the engine process, so they hold plain values only.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from sirocco.runtime.errors import RequestError

_T = TypeVar("_T")

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_CHOICES = 128  # of one request; each is a sequence of its own
MAX_LOGPROBS = 20  # the OpenAI bound
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_STOP_TOKEN_IDS = 256
MAX_SALT_LENGTH = 1024  # characters
MAX_SEED = 2**63


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen and when a sequence ends.

    `None` means: the model's `generation_config.json` if it says, else neutral (temperature 1, no filter, no penalty).
    Temperature 0 is greedy. Choice i of `n` samples with `seed + i`; without a seed each request draws its own.
    `logprobs` and `prompt_logprobs` give the number of alternatives beside the token's own (0 is valid).
    Raises `RequestError` naming the parameter when a value is out of range.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    n: int = 1
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt: bool = False
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        _check_int("max_tokens", self.max_tokens, 1, 2**31 - 1, optional=True)
        _check_number("temperature", self.temperature, 0.0, 100.0, optional=True)
        _check_int("top_k", self.top_k, -1, 2**31 - 1, optional=True)
        _check_number("top_p", self.top_p, 0.0, 1.0, optional=True)
        _check_number("min_p", self.min_p, 0.0, 1.0, optional=True)
        _check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3, optional=True)
        _check_int("n", self.n, 1, MAX_CHOICES)
        _check_int("seed", self.seed, -MAX_SEED, MAX_SEED - 1, optional=True)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS, optional=True)
        _check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS, optional=True)
        _check_int("priority", self.priority, -(2**31), 2**31 - 1)
        _check_list("stop", () if self.stop is None or isinstance(self.stop, str) else self.stop)
        _check_stops(self.stop_strings)
        stop_token_ids = _check_list("stop_token_ids", self.stop_token_ids or ())
        if len(stop_token_ids) > MAX_STOP_TOKEN_IDS:
            given = f"got {len(stop_token_ids)}"
            raise RequestError(f"at most {MAX_STOP_TOKEN_IDS} stop_token_ids are allowed, {given}", "stop_token_ids")
        for token_id in stop_token_ids:
            _check_int("stop_token_ids", token_id, 0, 2**31 - 1)
        if not isinstance(self.logit_bias, Mapping | None):
            raise RequestError("logit_bias must map token ids to numbers", "logit_bias")
        for token_id, bias in (self.logit_bias or {}).items():
            _check_int("logit_bias", token_id, 0, 2**31 - 1)
            _check_number("logit_bias", bias, -100.0, 100.0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _check_list(name: str, value: Sequence[_T]) -> Sequence[_T]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        raise RequestError(f"{name} must be a list, got {value!r:.64}", name)
    return value


def _check_int(name: str, value: int | None, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, got {value!r}", name)
    if not low <= value <= high:
        raise RequestError(f"{name} must be between {low} and {high}, got {value}", name)


def _check_number(name: str, value: float | None, low: float, high: float, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, got {value!r}", name)
    if not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number", name)
    if not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, got {value:g}", name)


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(f"at most {MAX_STOP_STRINGS} stop strings are allowed, got {len(stops)}", "stop")
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise RequestError("stop strings must be non-empty strings", "stop")
        if len(stop) > MAX_STOP_LENGTH:
            raise RequestError(f"a stop string may have {MAX_STOP_LENGTH} characters, got {len(stop)}", "stop")


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token's log probability under the model (before temperature and filters) and its `top` alternatives."""

    token_id: int
    logprob: float
    top: dict[int, float]


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request; `cached_tokens` of the prompt were served from the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class StreamEvent(msgspec.Struct, frozen=True):
    """One step forward of one choice. Its last event has a `finish_reason`, the last of all choices also `usage`."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Choice(msgspec.Struct, frozen=True):
    """One finished sequence of a request."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None


class Result(msgspec.Struct, frozen=True):
    """All choices of a request. The properties speak of the first choice."""

    choices: list[Choice]
    prompt_token_ids: list[int]
    usage: Usage
    prompt_logprobs: list[TokenLogprob | None] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.choices[0].logprobs
