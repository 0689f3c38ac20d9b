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
    parse_tool_calls,
)


class ToolCallStream:
    """Turns the text of one choice into content and pieces of calls. `only_first` drops every call after the first.

    A call that turns out malformed has been announced by then; its text follows as content and it is not counted.
    """

    def __init__(self, parser: ToolParser, only_first: bool) -> None:
        self.num_calls = 0  # complete ones
        self._parser = parser
        self._only_first = only_first

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
            elif self._only_first and event.index > 0:
                continue
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


def whole_calls(parser: ToolParser, text: str, only_first: bool) -> tuple[str, list[ToolCall]]:
    """The content and the calls of a finished text."""
    content, calls = parse_tool_calls(text, parser)
    kept = calls[:1] if only_first else calls
    return content, [ToolCall(new_id("call_"), FunctionCall(call.name, call.arguments)) for call in kept]
