"""Wire structs of `/v1/completions`. Fields that are not listed are ignored."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from sirocco.api.schemas.common import RequestFields, UsageBody
from sirocco.runtime.request import FinishReason


class CompletionRequest(RequestFields, kw_only=True):
    """`prompt` is a text, a list of texts, a list of token ids, or a list of lists of token ids."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None


class CompletionLogprobs(msgspec.Struct):
    """One entry a token. With `echo` the first prompt token has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(msgspec.Struct):
    """The whole answer, or one chunk of a stream, which has the same shape."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: UsageBody | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
