"""The ASGI application: a route table and what happens around every request."""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from sirocco.api.errors import HttpError
from sirocco.api.guard import Guard, preflight_headers
from sirocco.api.http import Exchange, Receive, Scope, Send
from sirocco.api.options import ServerOptions
from sirocco.api.routes import chat, completions, embeddings, health, models
from sirocco.api.service import Service
from sirocco.runtime.errors import EngineUnavailableError, OverloadedError, SiroccoError

if TYPE_CHECKING:
    from sirocco.runtime.async_engine import AsyncEngine

Handler = Callable[..., Awaitable[None]]

ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": health.health},
    "/ready": {"GET": health.ready},
    "/metrics": {"GET": health.metrics},
    "/v1/models": {"GET": models.list_models},
    "/v1/models/{}": {"GET": models.get_model},
    "/v1/chat/completions": {"POST": chat.chat_completions},
    "/v1/completions": {"POST": completions.completions},
    "/v1/embeddings": {"POST": embeddings.embeddings},
}
_PATTERNS = [(path, re.compile(path.replace("{}", "(.+)"))) for path in ROUTES if "{}" in path]
CUT_SECONDS = 2.0  # for every request that is cut off to be told
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def create_app(engine: "AsyncEngine", options: ServerOptions | None = None) -> "App":
    """An ASGI application over an engine. The caller starts the engine and closes it."""
    return App(engine, options or ServerOptions())


class App:
    """The ASGI callable, and the handles a server needs to end it: `drain`, `cut`."""

    def __init__(self, engine: "AsyncEngine", options: ServerOptions) -> None:
        self.service = Service(engine, options)
        self._guard = Guard(options)
        self._open: set[Exchange] = set()
        self._refusal: SiroccoError | None = None  # of everything, once the server has been cut off
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send, self.service.options))

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait for the running ones. Returns whether all ended within `timeout` seconds."""
        self.service.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def cut(self, reason: SiroccoError | None = None) -> None:
        """End every running request with an error, refuse all others, and wait for `CUT_SECONDS` at most."""
        self.service.draining = True
        self._refusal = reason or EngineUnavailableError("The server is shutting down.")
        for exchange in self._open:
            exchange.interrupt(self._refusal)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CUT_SECONDS):
                await self._idle.wait()

    async def _answer(self, exchange: Exchange) -> None:
        start = time.perf_counter()
        self._open.add(exchange)
        self._idle.clear()
        self.service.metrics.http_in_flight += 1
        route = "unknown"
        try:
            exchange.request_id = _request_id(exchange)
            exchange.reply_headers.append((b"x-request-id", exchange.request_id.encode("latin-1")))
            if self._guard.admit(exchange):
                await exchange.reply(204, b"", headers=preflight_headers(exchange))
                return
            if self._refusal is not None:
                raise self._refusal
            route, handler, arguments = _find(exchange)
            await handler(self.service, exchange, *arguments)
        except asyncio.CancelledError:
            if exchange.interruption is None:
                raise
            exchange.resume()
            await exchange.fail(exchange.interruption)
        except Exception as error:
            if isinstance(error, OverloadedError):
                self.service.metrics.rejected += 1
            await exchange.fail(error)
        finally:
            metrics = self.service.metrics
            metrics.http_in_flight -= 1
            method = exchange.method if exchange.method in _METHODS else "other"
            metrics.record_http(method, route, exchange.status, time.perf_counter() - start)
            self._open.discard(exchange)
            if not self._open:
                self._idle.set()


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _find(exchange: Exchange) -> tuple[str, Handler, tuple[str, ...]]:
    """The pattern, handler and path arguments for a request. Raises `HttpError` 404 or 405."""
    path, arguments = exchange.path, tuple[str, ...]()
    methods = ROUTES.get(path) if "{" not in path else None
    if methods is None:
        path, arguments = _match(exchange.path)
        methods = ROUTES[path]
    method = "GET" if exchange.method == "HEAD" else exchange.method
    handler = methods.get(method)
    if handler is None:
        allow = ", ".join(sorted(methods)).encode()
        raise HttpError(
            405, f"{path} does not answer {exchange.method[:16]}.", "method_not_allowed", [(b"allow", allow)]
        )
    return path, handler, arguments


def _match(path: str) -> tuple[str, tuple[str, ...]]:
    for pattern, regex in _PATTERNS:
        found = regex.fullmatch(path)
        if found is not None:
            return pattern, found.groups()
    raise HttpError(404, f"There is no route {path[:256]!r}.", "not_found")


def _request_id(exchange: Exchange) -> str:
    given = exchange.headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
