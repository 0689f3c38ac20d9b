"""Tool calls in a model's text, as OpenAI's stream shows them."""

from collections.abc import Sequence

from sirocco.api.schemas.chat import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from sirocco.api.service import new_id
from sirocco.runtime.text.tools import (
    ContentDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolEvent,
    ToolParser,
    ToolParserFactory,
    parse_tool_calls,
)


class OneCallParser:
    """Reads an answer as another parser does, up to the end of its first well-formed call."""

    def __init__(self, parser: ToolParser) -> None:
        self.tags = parser.tags
        self._parser = parser
        self._ended = False

    def push(self, text: str) -> list[ToolEvent]:
        """Events that became certain with this text."""
        return [] if self._ended else self._up_to_end(self._parser.push(text))

    def finish(self) -> list[ToolEvent]:
        """Events of what was held back."""
        return [] if self._ended else self._up_to_end(self._parser.finish())

    def _up_to_end(self, events: list[ToolEvent]) -> list[ToolEvent]:
        for count, event in enumerate(events, 1):
            if isinstance(event, ToolCallEnd):
                self._ended = True
                return events[:count]
        return events


def one_call(parser: ToolParserFactory) -> ToolParserFactory:
    """Makes parsers that read an answer up to the end of its first call."""
    return lambda: OneCallParser(parser())


class ToolCallStream:
    """Turns the text of one choice into content and pieces of calls.

    A call that turns out malformed has been announced by then; its text follows as content and it is not counted.
    """

    def __init__(self, parser: ToolParser) -> None:
        self.num_calls = 0  # complete ones
        self._parser = parser

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """The content and the calls' pieces that `text` completes, at most one piece a call."""
        return self._convert(self._parser.push(text))

    def finish(self) -> tuple[str, list[ToolCallDelta]]:
        """What was held back."""
        return self._convert(self._parser.finish())

    def _convert(self, events: Sequence[ToolEvent]) -> tuple[str, list[ToolCallDelta]]:
        content: list[str] = []
        pieces: dict[int, ToolCallDelta] = {}
        for event in events:
            if isinstance(event, ContentDelta):
                content.append(event.text)
            elif isinstance(event, ToolCallEnd):
                self.num_calls += 1
            elif isinstance(event, ToolCallStart):
                function = FunctionCallDelta("", event.name)
                pieces[event.index] = ToolCallDelta(event.index, function, new_id("call_"), "function")
            elif isinstance(event, ToolCallArguments):
                piece = pieces.get(event.index)
                if piece is None:
                    piece = pieces[event.index] = ToolCallDelta(event.index, FunctionCallDelta(""))
                piece.function.arguments += event.fragment
        return "".join(content), list(pieces.values())


def whole_calls(parser: ToolParser, text: str) -> tuple[str, list[ToolCall]]:
    """The content and the calls of a finished text."""
    content, calls = parse_tool_calls(text, parser)
    return content, [ToolCall(new_id("call_"), FunctionCall(call.name, call.arguments)) for call in calls]
