"""The Hermes and Qwen tool-call format: <tool_call>{"name": …, "arguments": {…}}</tool_call>, any number of them."""

from collections.abc import Callable

import msgspec

from sirocco.runtime.text.json_scan import JSON_SPACE, JsonError, JsonScanner
from sirocco.runtime.text.tool_events import (
    ContentDelta,
    ToolCallArguments,
    ToolCallCancelled,
    ToolCallEnd,
    ToolCallStart,
    ToolEvent,
)

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser:
    """Streams calls in the Hermes format.

    A call starts once its name is known and its arguments have begun, and its arguments stream from there. Text that
    is no well-formed call comes back unchanged as content; if the call had started, `ToolCallCancelled` precedes it.
    Whitespace before the first call, between calls and after the last is dropped.
    """

    __slots__ = ("_blank", "_call", "_events", "_held", "_next_index", "_seen_call")

    tags = (OPEN, CLOSE)

    def __init__(self) -> None:
        self._events: list[ToolEvent] = []
        self._call: _Call | None = None
        self._held = ""  # whitespace next to a call, or what may be the beginning of a tag
        self._blank = True  # nothing but whitespace since the beginning or the last call
        self._seen_call = False
        self._next_index = 0

    def push(self, text: str) -> list[ToolEvent]:
        """Events that became certain with this text."""
        self._read(text)
        return self._take_events()

    def finish(self) -> list[ToolEvent]:
        """Events of what was held back; a call cut off by the end is given back as content."""
        while self._call is not None:
            self._read(self._give_back(self._call))
        held, self._held = self._held, ""
        if not (self._blank and self._seen_call and not held.strip(JSON_SPACE)):
            self._add_content(held)
        return self._take_events()

    def _take_events(self) -> list[ToolEvent]:
        events, self._events = self._events, []
        return events

    def _read(self, text: str) -> None:
        at = 0
        while at < len(text):
            if self._call is None:
                at = self._read_content(text, at)
                continue
            try:
                at = self._read_call(self._call, text, at)
            except JsonError:
                text, at = self._give_back(self._call) + text[at:], 0

    def _read_content(self, text: str, at: int) -> int:
        """Pass content on up to the next call; returns where reading goes on in `text`."""
        if self._blank and "<" not in self._held and not text[at:].strip(JSON_SPACE):
            self._held += text[at:]  # without a look at what is there already: there may be no end of it
            return len(text)
        shift = 0
        if self._held:
            shift = at - len(self._held)
            text, at, self._held = self._held + text[at:], 0, ""
        opened = text.find(OPEN, at)
        if opened < 0:
            self._pass_on(text[at:])
            return shift + len(text)
        gap = text[at:opened]
        if not self._blank or gap.strip(JSON_SPACE):
            self._add_content(gap)
            gap = ""
        self._call = _Call(self._events, self._next_index, gap)
        return shift + opened + len(OPEN)

    def _pass_on(self, text: str) -> None:
        tag = text.rfind("<")
        certain = tag if tag >= 0 and OPEN.startswith(text[tag:]) else len(text)
        if self._blank and not text[:certain].strip(JSON_SPACE):
            self._held = text
            return
        self._blank = False
        self._add_content(text[:certain])
        self._held = text[certain:]

    def _read_call(self, call: "_Call", text: str, at: int) -> int:
        call.events = self._events
        end = call.feed(text, at)
        if call.done:
            self._call = None
            self._blank = self._seen_call = True
            self._next_index += 1
        else:
            call.raw.append(text[at:end])
        return end

    def _give_back(self, call: "_Call") -> str:
        """Turn a failed call's tag into content; returns the rest of its text, to be read again as content."""
        if call.started:
            self._events.append(ToolCallCancelled(call.index))
            self._next_index += 1
        self._add_content(call.gap + OPEN)
        self._call = None
        self._blank = False
        return "".join(call.raw)

    def _add_content(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ContentDelta):
            self._events[-1] = ContentDelta(last.text + text)
        elif text:
            self._events.append(ContentDelta(text))


class _Call:
    """One call being read, from behind its opening tag to the end of its closing tag.

    Every step takes the text and a position in it and returns the next; the first wrong character raises `JsonError`.
    """

    __slots__ = (
        "_captured",
        "_early",
        "_has_arguments",
        "_key",
        "_name",
        "_num_close",
        "_scanner",
        "_sink",
        "_step",
        "_then",
        "done",
        "events",
        "gap",
        "index",
        "raw",
        "started",
    )

    def __init__(self, events: list[ToolEvent], index: int, gap: str) -> None:
        self.events = events
        self.index = index
        self.gap = gap  # whitespace in front of the tag
        self.raw: list[str] = []  # what was read, in case it must be given back
        self.started = False
        self.done = False
        self._step: Callable[[str, int], int] = self._open
        self._scanner = JsonScanner()
        self._sink: Callable[[str], None] = _ignore  # takes the text of the value being scanned
        self._then: Callable[[], None] = _nothing  # what follows its end
        self._captured: list[str] = []
        self._key = ""
        self._name: str | None = None
        self._has_arguments = False
        self._early: list[str] = []  # arguments that came before the name
        self._num_close = 0  # characters of the closing tag seen

    def feed(self, text: str, at: int) -> int:
        while at < len(text) and not self.done:
            at = self._step(text, at)
        return at

    def _open(self, text: str, at: int) -> int:
        if text[at] == "{":
            self._step = self._first_key
        elif text[at] not in JSON_SPACE:
            raise JsonError(at, "a call must be a JSON object")
        return at + 1

    def _first_key(self, text: str, at: int) -> int:
        return self._end_object(at) if text[at] == "}" else self._next_key(text, at)

    def _next_key(self, text: str, at: int) -> int:
        if text[at] in JSON_SPACE:
            return at + 1
        if text[at] != '"':
            raise JsonError(at, "expected a key")
        self._scan(self._capture(), self._end_key)
        return at

    def _end_key(self) -> None:
        self._key = _decode_string("".join(self._captured))
        self._step = self._colon

    def _colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._step = self._value
        elif text[at] not in JSON_SPACE:
            raise JsonError(at, "expected ':'")
        return at + 1

    def _value(self, text: str, at: int) -> int:
        if text[at] in JSON_SPACE:
            return at + 1
        if self._key == "name":
            if self._name is not None or text[at] != '"':
                raise JsonError(at, "a call has one name, a string")
            self._scan(self._capture(), self._end_name)
        elif self._key in ("arguments", "parameters"):
            if self._has_arguments:
                raise JsonError(at, "a call has its arguments once")
            self._has_arguments = True
            if text[at] == "{":
                self._scan(self._add_arguments, self._end_member)
            else:
                self._scan(self._capture(), self._end_other_arguments)
        else:
            self._scan(_ignore, self._end_member)
        return at

    def _scan(self, sink: Callable[[str], None], then: Callable[[], None]) -> None:
        self._scanner = JsonScanner()
        self._sink, self._then = sink, then
        self._step = self._in_value

    def _capture(self) -> Callable[[str], None]:
        self._captured = []
        return self._captured.append

    def _in_value(self, text: str, at: int) -> int:
        try:
            end = self._scanner.feed(text, at)
        except JsonError as error:
            if error.at > at:  # as if the text had ended there: events must not depend on how it is split
                self._sink(text[at : error.at])
            raise
        if end > at:
            self._sink(text[at:end])
        if self._scanner.done:
            self._then()
        return end

    def _end_member(self) -> None:
        self._step = self._after_member

    def _after_member(self, text: str, at: int) -> int:
        if text[at] == "}":
            return self._end_object(at)
        if text[at] == ",":
            self._step = self._next_key
        elif text[at] not in JSON_SPACE:
            raise JsonError(at, "expected ',' or '}'")
        return at + 1

    def _end_name(self) -> None:
        self._name = _decode_string("".join(self._captured))
        if not self._name:
            raise JsonError(0, "a call needs a name")
        if self._early:
            self._add_arguments("".join(self._early))
        self._end_member()

    def _end_other_arguments(self) -> None:
        """Arguments that are not an object: null and the empty string stand for none, a string holds their JSON."""
        text = "".join(self._captured)
        if text.startswith('"'):
            text = _decode_string(text).strip(JSON_SPACE)
        if text in ("null", ""):
            text = "{}"
        scanner = JsonScanner()
        if not text.startswith("{") or scanner.feed(text, 0) < len(text) or not scanner.done:
            raise JsonError(0, "arguments must be an object")
        self._add_arguments(text)
        self._end_member()

    def _add_arguments(self, fragment: str) -> None:
        if self._name is None:
            self._early.append(fragment)
            return
        if not self.started:
            self.started = True
            self.events.append(ToolCallStart(self.index, self._name))
        self.events.append(ToolCallArguments(self.index, fragment))

    def _end_object(self, at: int) -> int:
        if self._name is None:
            raise JsonError(at, "a call needs a name")
        if not self._has_arguments:
            self._add_arguments("{}")
        self._step = self._close
        return at + 1

    def _close(self, text: str, at: int) -> int:
        if text[at] == CLOSE[self._num_close]:
            self._num_close += 1
            if self._num_close == len(CLOSE):
                self.done = True
                self.events.append(ToolCallEnd(self.index))
        elif self._num_close or text[at] not in JSON_SPACE:
            raise JsonError(at, "expected the closing tag")
        return at + 1


def _decode_string(text: str) -> str:
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):  # a lone surrogate, escaped or bare
        raise JsonError(0, "not a string of Unicode text") from None


def _ignore(fragment: str) -> None: ...


def _nothing() -> None: ...
