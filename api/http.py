"""One HTTP request and its answer over ASGI: bounded bodies, JSON, server-sent events, and who is still listening."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeVar

import msgspec

from sirocco.api.errors import (
    ClientGoneError,
    Failure,
    Header,
    HttpError,
    UnreadStreamError,
    describe,
    invalid_json,
)
from sirocco.api.options import ServerOptions
from sirocco.runtime.background import in_background

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_T = TypeVar("_T")
_A = TypeVar("_A")

JSON = b"application/json"
_WHOLE_BODY = 10  # times the limit between two of its pieces
FAREWELL_SECONDS = 1.0  # for telling a client that may not read why its answer ends
LARGE_BODY = 256 * 1024  # bytes: what a larger body says is worked through off the event loop

log = logging.getLogger("sirocco.api")
_encoder = msgspec.json.Encoder()
encode = _encoder.encode


class Exchange:
    """A request, what has been answered so far, and the way to end it early."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, options: ServerOptions) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.options = options
        self.reply_headers: list[Header] = []  # sent with whatever is answered
        self.status = 0  # 0: nothing answered yet
        self.interruption: Exception | None = None
        self.stream: EventStream | None = None
        self.request_id = ""
        self.arrived = 0.0  # when the whole request was there, in seconds of `time.perf_counter()`
        self._num_body_bytes = 0
        self._receive = receive
        self.send = send
        self._task = asyncio.current_task()

    def interrupt(self, reason: Exception) -> None:
        """End the handler now, wherever it waits. The first reason counts."""
        if self.interruption is None and self._task is not None:
            self.interruption = reason
            self._task.cancel()

    def resume(self) -> None:
        """Let the handler's task go on after an interruption, to answer it."""
        if self._task is not None:
            self._task.uncancel()

    async def body(self) -> bytes:
        """The whole request body. Raises `HttpError` 413 past the limit, without reading on, and 408 when it stalls."""
        limit = self.options.max_body_bytes
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise HttpError(415, "Compressed request bodies are not supported.")
        try:
            async with asyncio.timeout(_WHOLE_BODY * self.options.body_timeout):
                body = await self._pieces(limit)
        except TimeoutError:
            raise HttpError(408, "The request body did not arrive in time.") from None
        self.arrived = time.perf_counter()
        self._num_body_bytes = len(body)
        return body

    async def _pieces(self, limit: int) -> bytes:
        body = bytearray()
        while True:
            async with asyncio.timeout(self.options.body_timeout):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)

    async def json(self, decoder: msgspec.json.Decoder[_T]) -> _T:
        """The body as a struct. Raises `RequestError` with msgspec's sentence and the path of the field at fault."""
        body = await self.body()
        if not body:
            raise invalid_json(msgspec.DecodeError("the body is empty"))
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise invalid_json(error) from None

    async def work_through(self, function: Callable[[_A], _T], request: _A) -> _T:
        """`function(request)`, on a thread when the body was so large that others would have to wait for it."""
        if self._num_body_bytes <= LARGE_BODY:
            return function(request)
        return await in_background(lambda: function(request))

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While inside, a client that goes away interrupts the handler. Only after the body has been read."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGoneError())

    async def start(self, status: int, content_type: bytes, headers: Sequence[Header] = ()) -> None:
        """Send the status line and headers."""
        self.status = status
        all_headers = [(b"content-type", content_type), *headers, *self.reply_headers]
        await self.send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def reply(self, status: int, body: bytes, content_type: bytes = JSON, headers: Sequence[Header] = ()) -> None:
        """Answer with one whole body."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, content_type, (length, *headers))
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def fail(self, error: Exception) -> None:
        """Answer an error: a body with its status, or an event when a stream has begun. Never raises or blocks long."""
        if isinstance(error, ClientGoneError | UnreadStreamError):
            self.status = self.status or 499  # for the metrics; there is nobody to read it
            return
        failure = describe(error)
        if failure.body.error.code == "internal_error":
            log.error("request %s: %s %r failed", self.request_id, self.method, self.path, exc_info=error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._send_failure(failure)

    async def _send_failure(self, failure: Failure) -> None:
        if self.stream is not None and self.stream.started:
            await self.stream.send(failure.body)
            await self.stream.close()
        elif self.status == 0:
            await self.reply(failure.status, encode(failure.body), headers=failure.headers)


class EventStream:
    """Server-sent events (WHATWG HTML 9.2) that end with OpenAI's [DONE].

    The response starts with the first event or keep-alive comment, so an error before that still has its status.
    `send` blocks while the client does not read; past `unread_timeout` the exchange is interrupted.
    """

    def __init__(self, exchange: Exchange) -> None:
        exchange.stream = self
        self.started = False
        self._exchange = exchange
        self._keep_alive = exchange.options.keep_alive
        self._unread_timeout = exchange.options.unread_timeout
        self._loop = asyncio.get_running_loop()
        self._last_sent = self._loop.time()
        self._blocked_since: float | None = None
        self._comment: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(self._keep_alive, self._tick)

    async def __aenter__(self) -> "EventStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()
            self._comment = None

    async def send(self, event: msgspec.Struct) -> None:
        """Send one event."""
        await self._write(b"data: " + encode(event) + b"\n\n")

    async def close(self) -> None:
        """Say that all was sent, and end the response."""
        await self._write(b"data: [DONE]\n\n", more=False)

    async def _write(self, data: bytes, more: bool = True) -> None:
        if self._comment is not None and self._comment is not asyncio.current_task():
            comment, self._comment = self._comment, None
            await comment
        self._blocked_since = self._loop.time()
        if not self.started:
            self.started = True
            await self._exchange.start(200, b"text/event-stream; charset=utf-8", _STREAM_HEADERS)
        await self._exchange.send({"type": "http.response.body", "body": data, "more_body": more})
        self._blocked_since = None
        self._last_sent = self._loop.time()

    def _tick(self) -> None:
        now = self._loop.time()
        if self._blocked_since is not None:
            due = self._blocked_since + self._unread_timeout
            if now >= due:
                self._exchange.interrupt(UnreadStreamError())
                return
        else:
            due = self._last_sent + self._keep_alive
            if now >= due:
                self._comment = self._loop.create_task(self._write(b": keep-alive\n\n"))
                due = now + self._keep_alive
        self._timer = self._loop.call_at(due, self._tick)


_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"The request body is larger than {limit // 2**20} MiB.", "request_too_large")
