"""What chat and legacy completions share on the wire."""

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Request fields that choose tokens. `null` always means the default; ranges are checked by `SamplingParams`."""

    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    truncate_sequence: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None


class ResponseFormat(msgspec.Struct):
    type: str = "text"


class RequestFields(SamplingFields, kw_only=True):
    """Request fields about which model answers and how. `grammar` and `adapter` are known in order to be refused."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: Any = None
    adapter: Any = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
