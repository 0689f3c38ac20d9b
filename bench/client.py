"""A small HTTP/1.1 client for streamed answers that costs little CPU itself.

A protocol, not asyncio's streams: a block of bytes is looked at once, as it comes, and all its events have that time.
"""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import msgspec

from sirocco.runtime.errors import RequestError

MAX_HEAD_BYTES = 64 * 1024
MAX_EVENT_BYTES = 16 * 2**20
_VISIBLE = re.compile(r"[!-~]*")  # what a request line and a header may hold


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same as other servers name it
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Text | None = None


class _PromptTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptTokens | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Outcome:
    """One request as the client saw it. Times are seconds of `time.perf_counter()`; `error` is a kind or None."""

    start: float = 0.0
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of chunks with text
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None  # of the prompt; None where the server does not say
    error: str | None = None


class StreamProtocol(asyncio.Protocol):
    """One connection that carries one request after another."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()  # bytes of the current part, not yet understood
        self._events = bytearray()  # body bytes of the event under way
        self._read = self._read_head
        self._status = 0
        self._remaining = 0  # body bytes to come: of the chunk, or of the whole body
        self._chunked = False
        self._keep_alive = True
        self._finished_stream = False
        self._outcome: Outcome | None = None
        self._done: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and self._keep_alive

    async def request(self, message: bytes, timeout: float) -> Outcome:
        """Send a request and collect its answer. Never raises for what a server or network does."""
        assert self.transport is not None and self._outcome is None
        outcome = self._outcome = Outcome(start=time.perf_counter())
        self._done = asyncio.get_running_loop().create_future()
        self._status, self._finished_stream = 0, False
        self._read = self._read_head
        self._buffer.clear()
        self._events.clear()
        self.transport.write(message)
        try:
            async with asyncio.timeout(timeout):
                await self._done
        except TimeoutError:
            outcome.error = "timeout"
        finally:
            self._outcome = None
            if outcome.error is not None:
                self.transport.abort()
        outcome.end = outcome.end or time.perf_counter()
        return outcome

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, error: Exception | None) -> None:
        self._keep_alive = False
        if self._read == self._read_to_end:
            self._end()
        self._end("disconnected")

    def data_received(self, data: bytes) -> None:
        if self._outcome is None:
            return
        now = time.perf_counter()
        self._buffer += data
        try:
            while self._outcome is not None and self._read(now):
                pass
        except (ValueError, msgspec.MsgspecError):
            self._end("bad_response")

    # Readers take what they understand from the buffer, and return whether there may be more to do with the rest.

    def _read_head(self, now: float) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ValueError("the head is too long")
            return False
        status_line, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._status = _natural(status_line.partition(b" ")[2][:3])
        self._keep_alive = headers.get(b"connection", b"").lower() != b"close"
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._read = self._read_chunk_size
        elif b"content-length" in headers:
            self._remaining = _natural(headers[b"content-length"])
            self._read = self._read_fixed
        else:
            self._keep_alive = False
            self._read = self._read_to_end
        return True

    def _read_chunk_size(self, now: float) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        size = _natural(bytes(self._buffer[:end]).partition(b";")[0].strip(), 16)
        del self._buffer[: end + 2]
        self._remaining = size + 2  # with the line end after it
        self._read = self._read_chunk if size else self._read_trailer
        return True

    def _read_chunk(self, now: float) -> bool:
        if len(self._buffer) < self._remaining:
            return False
        self._events += self._buffer[: self._remaining - 2]
        del self._buffer[: self._remaining]
        self._take_events(now)
        self._read = self._read_chunk_size
        return True

    def _read_trailer(self, now: float) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        empty = end == 0
        del self._buffer[: end + 2]
        if empty:
            self._end()
        return True

    def _read_fixed(self, now: float) -> bool:
        taken = self._buffer[: self._remaining]
        del self._buffer[: len(taken)]
        self._events += taken
        self._remaining -= len(taken)
        self._take_events(now)
        if self._remaining == 0:
            self._end()
        return False

    def _read_to_end(self, now: float) -> bool:
        self._events += self._buffer
        self._buffer.clear()
        self._take_events(now)
        return False

    def _take_events(self, now: float) -> None:
        if self._status != 200:
            self._events.clear()  # the status says what kind of error it is
            return
        if b"\r" in self._events:  # never raw within JSON
            self._events = self._events.replace(b"\r\n", b"\n")
        while (end := self._events.find(b"\n\n")) >= 0:
            event = bytes(self._events[:end])
            del self._events[: end + 2]
            data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data:
                self._take(data, now)
        if len(self._events) > MAX_EVENT_BYTES:
            raise ValueError("an event is too long")

    def _take(self, data: bytes, now: float) -> None:
        outcome = self._outcome
        assert outcome is not None
        if data == b"[DONE]":
            self._finished_stream = True
            outcome.end = now
            return
        chunk = _decode(data)
        if chunk.error is not None:
            outcome.error = "stream_error"
        if chunk.usage is not None:
            outcome.prompt_tokens = chunk.usage.prompt_tokens
            outcome.completion_tokens = chunk.usage.completion_tokens
            if chunk.usage.prompt_tokens_details is not None:
                outcome.cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
        if any(_has_text(choice) for choice in chunk.choices):
            outcome.arrivals.append(now)

    def _end(self, error: str | None = None) -> None:
        """The answer is complete, or broken for the reason given."""
        outcome = self._outcome
        if outcome is None or self._done is None or self._done.done():
            return
        if error is None and self._status != 200:
            error = f"http_{self._status}"
        elif error is None and not self._finished_stream:
            error = "cut_off"
        outcome.error = outcome.error or error
        self._done.set_result(None)


def _natural(text: bytes, base: int = 10) -> int:
    value = int(text, base)
    if value < 0:
        raise ValueError("a negative number")
    return value


def _has_text(choice: _Choice) -> bool:
    if choice.text:
        return True
    delta = choice.delta
    return delta is not None and bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


def _split(base_url: str) -> tuple[SplitResult, str]:
    """A URL's parts and its host as name servers know it. Raises `RequestError`."""
    try:
        parts = urlsplit(base_url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError:
        raise RequestError(f"{base_url!r} is not a URL") from None
    if parts.username is not None or parts.password is not None:
        raise RequestError("a URL with a user name or password is not supported")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise RequestError(f"{base_url!r} is not an http or https URL")
    if parts.query or parts.fragment or not _VISIBLE.fullmatch(host + parts.path):
        raise RequestError(f"{base_url!r} holds more than a host, a port and a path of visible ASCII characters")
    return parts, host


class Client:
    """Connections to one server, used again when they are free."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        """Connects later. `timeout` in seconds. Raises `RequestError` for a URL or key that no request can have."""
        parts, self._host = _split(base_url)
        if api_key is not None and not _VISIBLE.fullmatch(api_key):
            raise RequestError("an API key holds visible ASCII characters only")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        authority = f"[{self._host}]" if ":" in self._host else self._host
        if parts.port is not None:
            authority += f":{parts.port}"
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"Host: {authority}\r\nContent-Type: application/json\r\n{key}"
        self._free: list[StreamProtocol] = []

    def encode(self, path: str, payload: Any) -> bytes:
        """The bytes of a POST, made before its time is taken. Raises `RequestError` for text that is not Unicode."""
        try:
            body = msgspec.json.encode(payload)
        except UnicodeEncodeError:
            raise RequestError("the request is not valid Unicode: there is a lone surrogate") from None
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body

    async def post(self, message: bytes) -> Outcome:
        """Send an encoded request on a free connection or a new one."""
        connection = None
        while self._free and connection is None:
            candidate = self._free.pop()
            connection = candidate if candidate.usable else None
        if connection is None:
            started = time.perf_counter()
            try:
                connection = await self._connect()
            except (OSError, TimeoutError):
                return Outcome(started, time.perf_counter(), error="connect")
        outcome = await connection.request(message, self._timeout)
        if connection.usable:
            self._free.append(connection)
        return outcome

    def close(self) -> None:
        for connection in self._free:
            if connection.transport is not None:
                connection.transport.close()
        self._free.clear()

    async def _connect(self) -> StreamProtocol:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            _, connection = await loop.create_connection(StreamProtocol, self._host, self._port, ssl=self._tls)
        return connection
