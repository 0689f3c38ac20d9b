"""Sirocco: a local-first LLM inference engine and agent runtime.

Names are imported when they are first used: `import sirocco` costs milliseconds and no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sirocco.runtime.async_engine import AsyncEngine
    from sirocco.runtime.engine import Engine
    from sirocco.runtime.errors import (
        ContextLengthError,
        EngineDiedError,
        EngineUnavailableError,
        GenerationError,
        ModelLoadError,
        OverloadedError,
        RequestError,
        SiroccoError,
        TemplateError,
    )
    from sirocco.runtime.request import Choice, Result, SamplingParams, StreamEvent, TokenLogprob, Usage

__version__ = "0.1.0"

_HOMES = {
    "sirocco.runtime.async_engine": ("AsyncEngine",),
    "sirocco.runtime.engine": ("Engine",),
    "sirocco.runtime.errors": (
        "ContextLengthError",
        "EngineDiedError",
        "EngineUnavailableError",
        "GenerationError",
        "ModelLoadError",
        "OverloadedError",
        "RequestError",
        "SiroccoError",
        "TemplateError",
    ),
    "sirocco.runtime.request": ("Choice", "Result", "SamplingParams", "StreamEvent", "TokenLogprob", "Usage"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncEngine",
    "Choice",
    "ContextLengthError",
    "Engine",
    "EngineDiedError",
    "EngineUnavailableError",
    "GenerationError",
    "ModelLoadError",
    "OverloadedError",
    "RequestError",
    "Result",
    "SamplingParams",
    "SiroccoError",
    "StreamEvent",
    "TemplateError",
    "TokenLogprob",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
