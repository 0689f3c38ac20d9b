"""An engine in a process of its own, started again when it dies.

The two talk over a socket pair that exists nowhere in the file system. A death fails every open request at once. The
prompt of a request that was inside at two deaths is refused from then on. Five deaths in a minute are taken as final,
and so are five in a row without a start that succeeds, or a model that can no longer be loaded.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import time
from array import array
from collections import OrderedDict, deque
from hashlib import blake2b
from pathlib import Path

import msgspec

from sirocco.runtime.client import EngineClient
from sirocco.runtime.errors import (
    EngineDiedError,
    EngineUnavailableError,
    ModelLoadError,
    NotEnoughMemoryError,
    RequestError,
)
from sirocco.runtime.wire import (
    Command,
    EmbedRequest,
    EngineInfo,
    EngineOptions,
    EngineRequest,
    FrameReader,
    FromEngine,
    LoadFailed,
    Outputs,
    frame,
)

logger = logging.getLogger("sirocco.engine")

MAX_DEATHS = 5  # within DEATH_WINDOW: then it stays down
DEATH_WINDOW = 60.0  # seconds
FIRST_BACKOFF = 0.1  # seconds, doubled with each death in the window
POISONOUS = 2  # deaths at which a request was present
MAX_SUSPECTS = 4096
CLOSE_TIMEOUT = 5.0  # seconds for the process to end by itself
_STDERR = 2  # not `sys.stderr.fileno()`, which a notebook's has not


class ProcessClient(EngineClient):
    """Starts `python -m sirocco.runtime.worker` and keeps it running."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__()
        self.options = options
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._deaths: deque[float] = deque()
        self._suspects: OrderedDict[bytes, int] = OrderedDict()  # prompts present at a death, and at how many

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return None if self._process is None else self._process.pid

    async def start(self, folder: Path | None = None) -> EngineInfo:
        if folder is not None:
            self.options = msgspec.structs.replace(self.options, folder=str(folder))
        try:
            ended = await self._launch()
        except BaseException as error:
            reason = _reason(error)
            if self.state != "closed":
                self.state, self.state_reason = "failed", reason
            if isinstance(error, OSError | EngineDiedError):
                raise ModelLoadError(reason) from error
            raise
        self._keeper = asyncio.create_task(self._keep(ended))
        return self.info

    async def close(self) -> None:
        if self.state == "closed":
            return
        self.state, self.state_reason = "closed", "the engine was closed"
        self._fail_all(EngineUnavailableError(self.state_reason))
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._end_process()

    def _send(self, command: Command) -> None:
        if self._suspects and isinstance(command, EngineRequest | EmbedRequest) and self._is_poisonous(command):
            raise RequestError("this request was being computed when the engine died, more than once; it is refused")
        assert self._transport is not None
        self._transport.write(frame(command))

    def _is_poisonous(self, request: EngineRequest | EmbedRequest) -> bool:
        return self._suspects.get(_digest(request), 0) >= POISONOUS

    async def _launch(self) -> "asyncio.Future[None]":
        """Start the process and wait for its model. The future is done when the process is gone."""
        loop = asyncio.get_running_loop()
        connection = _Connection(self, loop)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "sirocco.runtime.worker", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=_STDERR,
                )
            self._transport, _ = await loop.create_unix_connection(lambda: connection, sock=ours)
            if self.state == "closed":
                raise EngineUnavailableError(self.state_reason)
            self._transport.write(frame(self.options))
            self._info = await connection.ready
        except BaseException:
            await self._end_process()
            ours.close()
            raise
        self.state, self.state_reason = "ready", ""
        return connection.ended

    async def _keep(self, ended: "asyncio.Future[None]") -> None:
        """Start the engine again whenever it ends, until it ends too often or its model can no longer be loaded."""
        await ended
        while True:
            self._bury()
            await self._end_process()
            if len(self._deaths) >= MAX_DEATHS:
                self.state = "failed"
                self.state_reason = f"the engine died {len(self._deaths)} times: too often to be started again"
                return
            await asyncio.sleep(FIRST_BACKOFF * 2 ** (len(self._deaths) - 1))
            try:
                await (await self._launch())
            except Exception as error:
                if isinstance(error, ModelLoadError) and not isinstance(error, NotEnoughMemoryError):
                    self.state, self.state_reason = "failed", str(error)
                    return
                # A death like any other: there may be memory or processes again in a moment.
                logger.warning("the engine did not start again: %s", _reason(error))

    def _bury(self) -> None:
        """The engine is gone: tell every open request, and remember which were there."""
        now = time.monotonic()
        self._deaths.append(now)
        while self.state == "ready" and now - self._deaths[0] > DEATH_WINDOW:  # starts that fail count, however slow
            self._deaths.popleft()
        self.state, self.state_reason = "restarting", "the engine died and is being started again"
        present = self._fail_all(EngineDiedError("the engine died while it was computing this request"))
        for digest in {_digest(request) for request in present}:  # once a death, however many sent the same prompt
            self._suspects[digest] = self._suspects.pop(digest, 0) + 1
        while len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    async def _end_process(self) -> None:
        if self._transport is not None:
            self._transport.close()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), CLOSE_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()


class _Connection(asyncio.Protocol):
    """Our end of the socket pair: frames in, outputs to the client's sinks."""

    def __init__(self, client: ProcessClient, loop: asyncio.AbstractEventLoop) -> None:
        self.ready: asyncio.Future[EngineInfo] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._client = client
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            match self._decoder.decode(body):
                case Outputs() as outputs:
                    self._client._deliver(outputs)
                case EngineInfo() as info if not self.ready.done():
                    self.ready.set_result(info)
                case LoadFailed(message, for_now) if not self.ready.done():
                    self.ready.set_exception(NotEnoughMemoryError(message) if for_now else ModelLoadError(message))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(EngineDiedError("the engine process ended while it was loading the model"))
        if not self.ended.done():
            self.ended.set_result(None)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"the engine process cannot be started: {error.strerror or type(error).__name__}"
    return str(error) or "the engine could not start"


def _digest(request: EngineRequest | EmbedRequest) -> bytes:
    sequences = [request.prompt_token_ids] if isinstance(request, EngineRequest) else request.sequences
    digest = blake2b(digest_size=16)
    for sequence in sequences:
        digest.update(array("q", [len(sequence), *sequence]).tobytes())
    return digest.digest()
