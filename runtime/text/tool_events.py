"""What a tool-call parser reports."""

import msgspec


class ContentDelta(msgspec.Struct, frozen=True, tag="content"):
    """Text for the reader."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True, tag="start"):
    """Call number `index` of this answer names a function."""

    index: int
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True, tag="arguments"):
    """A piece of the call's arguments; the pieces joined are a JSON object, as it was generated."""

    index: int
    fragment: str


class ToolCallEnd(msgspec.Struct, frozen=True, tag="end"):
    """The call is complete and well formed."""

    index: int


class ToolCallCancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    """A started call turned out malformed or was cut off: it is void, and its whole text follows as content."""

    index: int


ToolEvent = ContentDelta | ToolCallStart | ToolCallArguments | ToolCallEnd | ToolCallCancelled


class ToolCall(msgspec.Struct, frozen=True):
    """A complete call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str
