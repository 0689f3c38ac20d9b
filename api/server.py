"""The application on an embedded granian: sockets, signals, and an orderly end.

Exit codes: 0 after SIGTERM or SIGINT once running requests have ended or been cut off at the drain timeout; 128 + the
signal's number (130, 143) when a second signal stops everything at once.
"""

import asyncio
import contextlib
import copy
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LOGGING_CONFIG, LogLevels
from granian.server.embed import Server

from sirocco.api.app import App, create_app
from sirocco.api.guard import WILDCARD_BINDS, is_loopback
from sirocco.api.options import ServerOptions
from sirocco.api.output import drop_output
from sirocco.runtime.errors import SiroccoError

if TYPE_CHECKING:
    from sirocco.runtime.async_engine import AsyncEngine

BACKLOG = 1024
MAX_CONNECTIONS = 4096  # granian counts idle ones too; the queue limit is the application's
OTHER_FILES = 128  # that the process may have open beside connections
MAX_HEADER_BYTES = 64 * 1024
HEADER_TIMEOUT_MS = 30_000
STOP_SECONDS = 2.0  # for granian to close its connections after the last answer

log = logging.getLogger("sirocco.api")


class ListenError(SiroccoError):
    """The address cannot be listened on."""


def run(make_engine: Callable[[], "AsyncEngine"], options: ServerOptions) -> int:
    """Serve until a signal ends it. Returns the exit code.

    Raises `ListenError` when the address is taken or not ours, `ModelLoadError` when the model does not load.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    address, port = free_address(options.host, options.port)
    if not options.api_keys and (address in WILDCARD_BINDS or not is_loopback(address)):
        log.warning("listening beyond this machine without --api-key: anyone who reaches port %d can use it", port)
    return uvloop.run(_serve(make_engine, options, address, port))


def free_address(host: str, port: int) -> tuple[str, int]:
    """The numeric address to bind and its port, chosen when `port` is 0. Raises `ListenError`.

    granian shares ports with other processes (SO_REUSEPORT), so a port in use must be noticed here.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            address, chosen = probe.getsockname()[:2]
            return str(address), int(chosen)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ListenError(f"cannot listen on {host}:{port}: {reason}") from None


class _Signals:
    """SIGINT and SIGTERM as events: the first asks for an orderly end, the second for an immediate one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.exit_code = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._notice, number)

    def _notice(self, number: int) -> None:
        if self.first.is_set():
            self.exit_code = 128 + number
            self.second.set()
        self.first.set()


async def _serve(make_engine: Callable[[], "AsyncEngine"], options: ServerOptions, address: str, port: int) -> int:
    signals = _Signals(asyncio.get_running_loop())
    engine = make_engine()
    app = create_app(engine, options)
    server = _embedded(app, address, port)
    http = asyncio.create_task(server.serve())
    first = asyncio.create_task(signals.first.wait())
    try:
        # Liveness answers while the model loads; readiness says 503.
        if await _unless(signals.first, engine.start(), http):
            _announce(options.host, port, engine.model_id)
            await asyncio.wait([first, http], return_when=asyncio.FIRST_COMPLETED)
        if http.done():
            raise ListenError("the HTTP server ended by itself")
        await _end(app, options, signals)
    finally:
        first.cancel()
        server.stop()  # type: ignore[no-untyped-call]
        await engine.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(http, STOP_SECONDS)
    return signals.exit_code


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, Any], *others: asyncio.Task[None]) -> bool:
    """Do the work unless the event comes first, which cancels it, or one of the others ends. True when it is done.

    Errors of the work and of the others are raised.
    """
    waiter = asyncio.create_task(event.wait())
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait([waiter, task, *others], return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
        return task in done
    finally:
        waiter.cancel()
        task.cancel()


async def _end(app: App, options: ServerOptions, signals: _Signals) -> None:
    if not signals.second.is_set():
        log.info(
            "draining: running requests may finish within %g seconds; a second signal stops at once",
            options.drain_timeout,
        )
        await _unless(signals.second, app.drain(options.drain_timeout))
    await _unless(signals.second, app.cut())


def _announce(host: str, port: int, model: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    body = '{"messages": [{"role": "user", "content": "Hello"}]}'
    try:
        print(f"sirocco: {model} is listening on {url}", flush=True)
        print(f"try: curl {url}/v1/chat/completions -d '{body}'", flush=True)
    except BrokenPipeError:  # nobody reads what we print; clients may come all the same
        drop_output()


def _connections() -> int:
    """How many connections this process may hold open; asks the system for as many files as that takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - OTHER_FILES))


def _embedded(app: App, address: str, port: int) -> Server:
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    for handler in config["handlers"].values():
        handler["stream"] = "ext://sys.stderr"
    return Server(
        app,
        address=address,
        port=port,
        interface=Interfaces.ASGINL,
        backlog=BACKLOG,
        backpressure=_connections(),
        http=HTTPModes.http1,  # granian waits without end for an HTTP/2 client, and for a first byte that tells which
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS, max_buffer_size=MAX_HEADER_BYTES),
        websockets=False,
        log_dictconfig=config,
        log_level=LogLevels.error,
    )
