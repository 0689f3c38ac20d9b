"""The one map from an exception to an HTTP status and an OpenAI error body."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sirocco.api.schemas.errors import ErrorBody, ErrorDetail
from sirocco.runtime.errors import (
    EngineUnavailableError,
    GenerationError,
    ModelLoadError,
    ModelNotFoundError,
    OverloadedError,
    RequestCancelledError,
    RequestError,
)

Header = tuple[bytes, bytes]

MAX_MESSAGE = 1000  # characters; some sentences quote what the client sent
INTERNAL_MESSAGE = "The server failed while handling this request."


class HttpError(Exception):
    """A refusal that only HTTP knows: wrong route, method, host, key or body."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = tuple(headers)


class ClientGoneError(Exception):
    """The client closed its connection; there is nobody to answer."""


class UnreadStreamError(Exception):
    """The client left its stream unread for too long."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is answered."""

    status: int
    body: ErrorBody
    headers: tuple[Header, ...] = ()


def describe(error: BaseException) -> Failure:
    """What to answer for an exception. Anything unforeseen is 500 with a text that tells nothing of our insides."""
    match error:
        case HttpError():
            return _failure(error.status, error.message, code=error.code, headers=error.headers)
        case RequestError():
            return _failure(400, error.message, error.param, error.code)
        case ModelNotFoundError():
            return _failure(404, str(error), "model", "model_not_found")
        case OverloadedError():
            return _failure(429, str(error), code="overloaded", headers=_retry_after(error.retry_after))
        case EngineUnavailableError():
            return _failure(503, str(error), code="engine_unavailable", headers=_retry_after(1.0))
        case RequestCancelledError():
            return _failure(503, str(error), code="cancelled", headers=_retry_after(1.0))
        case GenerationError():
            return _failure(500, str(error), code="generation_failed")
        case ModelLoadError():
            return _failure(503, "The model could not be loaded.", code="engine_unavailable")
        case _:
            return _failure(500, INTERNAL_MESSAGE, code="internal_error")


def invalid_json(error: msgspec.MsgspecError | RecursionError | UnicodeDecodeError) -> RequestError:
    """The request error for a body that msgspec refused; its sentence ends with the path, which becomes `param`."""
    if isinstance(error, RecursionError):
        return RequestError("The request body is nested too deeply.")
    if isinstance(error, UnicodeDecodeError):
        return RequestError("The request body is not valid UTF-8.")
    sentence = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return RequestError(f"The request body is not valid JSON: {sentence}")
    _, found, path = sentence.partition(" - at `$")
    param = path.rstrip("`").removeprefix(".") if found else None
    if param is None and "required field `" in sentence:
        param = sentence.rpartition("required field `")[2].rstrip("`")
    return RequestError(sentence, param or None)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def _failure(
    status: int, message: str, param: str | None = None, code: str | None = None, headers: tuple[Header, ...] = ()
) -> Failure:
    default = "server_error" if status >= 500 else "invalid_request_error"
    message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"
    return Failure(status, ErrorBody(ErrorDetail(message, _TYPES.get(status, default), param, code)), headers)


def _retry_after(seconds: float) -> tuple[Header, ...]:
    return ((b"retry-after", str(max(1, math.ceil(seconds))).encode()),)
