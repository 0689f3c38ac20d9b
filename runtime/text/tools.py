"""Tool calls in generated text: which parser a model needs, and its use on a whole answer."""

from collections.abc import Callable
from typing import Protocol

from sirocco.runtime.text.detokenize import StopChecker
from sirocco.runtime.text.hermes import HermesParser
from sirocco.runtime.text.tokenizer import Tokenizer
from sirocco.runtime.text.tool_events import (
    ContentDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallCancelled,
    ToolCallEnd,
    ToolCallStart,
    ToolEvent,
)

__all__ = [
    "ContentDelta",
    "FirstCall",
    "HermesParser",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallCancelled",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolEvent",
    "ToolParser",
    "ToolParserFactory",
    "parse_tool_calls",
    "tool_parser",
]

_PIECE = 4096  # characters given to a parser at once; it may copy what is left of a piece after each call


class ToolParser(Protocol):
    """Splits one answer into content and calls.

    The events, with neighbouring pieces of one kind joined, do not depend on how the text was split. Every character
    ends up in an event, except the format's own markup and whitespace around calls.
    """

    @property
    def tags(self) -> tuple[str, ...]:
        """The markup that it looks for; some models have it as special tokens, which must then stay in the text."""

    def push(self, text: str) -> list[ToolEvent]:
        """Events that became certain with this text."""

    def finish(self) -> list[ToolEvent]:
        """Events of what was held back; a call cut off by the end is given back as content."""


ToolParserFactory = Callable[[], ToolParser]


def tool_parser(source: str | Tokenizer | None) -> ToolParserFactory | None:
    """The parser for a model's tool calls, told by its chat template's text or its vocabulary; None if unknown."""
    if source is None:
        return None
    text = source if isinstance(source, str) else _marker_tokens(source)
    # GLM and Qwen3-Coder templates write XML or key-value pairs between the same tags.
    if "<tool_call>" in text and "<function=" not in text and "<arg_key>" not in text:
        return HermesParser
    return None


class FirstCall:
    """Watches text as `StopChecker` does, and ends it behind its first well-formed call too."""

    __slots__ = ("_called", "_parser", "_stops")

    def __init__(self, parser: ToolParser, stops: StopChecker) -> None:
        self._parser = parser
        self._stops = stops
        self._called = False

    @property
    def ended(self) -> bool:
        return self._called or self._stops.ended

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether it ends with it."""
        shown, _ = self._stops.push(text)
        self._called = self._called or any(isinstance(event, ToolCallEnd) for event in self._parser.push(shown))
        return shown, self.ended

    def finish(self) -> str:
        """What was held back, up to a stop within it."""
        return self._stops.finish()


def _marker_tokens(tokenizer: Tokenizer) -> str:
    return "".join(token for token in ("<tool_call>", "<arg_key>") if tokenizer.token_id(token) is not None)


def parse_tool_calls(text: str, parser: ToolParser | None = None) -> tuple[str, list[ToolCall]]:
    """The content and the well-formed calls of a whole answer, by a fresh parser (Hermes format when None)."""
    parser = parser or HermesParser()
    content: list[str] = []
    calls: list[ToolCall] = []
    name, fragments = "", list[str]()
    events = [event for start in range(0, len(text), _PIECE) for event in parser.push(text[start : start + _PIECE])]
    for event in events + parser.finish():
        match event:
            case ContentDelta(delta):
                content.append(delta)
            case ToolCallStart(_, name):
                fragments = []
            case ToolCallArguments(_, fragment):
                fragments.append(fragment)
            case ToolCallEnd():
                calls.append(ToolCall(name, "".join(fragments)))
            case ToolCallCancelled():
                pass  # its text comes as content
    return "".join(content), calls
