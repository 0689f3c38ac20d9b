"""Everything that can go wrong from outside, as one hierarchy.

Each exception carries facts; `api/errors.py` turns them into HTTP bodies and the command line into one line.
Texts never hold paths of the host, stack traces or internal names.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's or one of torch's ways to say that memory is not to be had."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "alloc" in str(error)


class SiroccoError(Exception):
    """Base of every error that Sirocco raises on purpose."""


class RequestError(SiroccoError):
    """The request is at fault: a value out of range, a prompt that does not fit, an unknown role."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"  # OpenAI's code


class ContextLengthError(RequestError):
    """The prompt does not fit the model's context."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param, code=CONTEXT_LENGTH_EXCEEDED)


class TemplateError(RequestError):
    """A chat template failed, refused the messages, or exceeded its time, memory or output limit."""


class ModelLoadError(SiroccoError):
    """A model cannot be loaded: not found, broken files, an unknown architecture, weights that do not match."""


class NotEnoughMemoryError(ModelLoadError):
    """A model cannot be loaded at the moment: others hold the memory that it would take."""


class ModelNotFoundError(SiroccoError):
    """A request names a model that is not being served."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model!r} does not exist.")
        self.model = model


class OverloadedError(SiroccoError):
    """The waiting queue is full; `retry_after` is the suggested wait in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailableError(SiroccoError):
    """The engine is starting, draining, stopped, or has given up restarting."""


class EngineDiedError(EngineUnavailableError):
    """The engine process ended while it held this request."""


class GenerationError(SiroccoError):
    """The engine failed while computing this request; other requests go on."""


class RequestCancelledError(SiroccoError):
    """The request was aborted before it finished."""
