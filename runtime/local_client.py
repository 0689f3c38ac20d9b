"""An engine on a thread of this process."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import msgspec

from sirocco.runtime.client import EngineClient
from sirocco.runtime.core import Core, run_engine
from sirocco.runtime.errors import EngineDiedError, EngineUnavailableError
from sirocco.runtime.host import prepare_process
from sirocco.runtime.wire import Command, EngineInfo, EngineOptions, Outputs

logger = logging.getLogger("sirocco.engine")

Build = Callable[[EngineOptions], tuple[Core, EngineInfo]]


class LocalClient(EngineClient):
    """Loads and steps the engine on a thread of its own; a step's outputs reach the event loop in one call.

    `build` is what loads the model: another one serves models that are in memory already.
    """

    def __init__(self, options: EngineOptions, build: Build | None = None) -> None:
        super().__init__()
        self.options = options
        self._build = build
        self._inbox: SimpleQueue[Command | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._ended: asyncio.Future[None] | None = None  # from when on the thread computes

    async def start(self, folder: Path | None = None) -> EngineInfo:
        if folder is not None:
            self.options = msgspec.structs.replace(self.options, folder=str(folder))
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="sirocco-engine", daemon=True)
        self._thread.start()
        try:
            return await self._ready
        except BaseException as error:
            if self.state != "closed":
                self.state, self.state_reason = "failed", str(error)
            raise

    async def close(self) -> None:
        if self._thread is None or self.state == "closed":
            return
        self.state, self.state_reason = "closed", "the engine was closed"
        self._inbox.put(None)
        self._fail_all(EngineUnavailableError(self.state_reason))
        self._on_failure(EngineUnavailableError(self.state_reason))
        if self._ended is not None:  # else it still loads, which nothing can break off: nobody waits for that
            await self._ended
            self._thread.join()

    def _send(self, command: Command) -> None:
        self._inbox.put(command)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            prepare_process()
            core, info = (self._build or _build)(self.options)
        except BaseException as error:
            _call(loop, self._on_failure, error)
            return
        _call(loop, self._on_ready, info)

        def deliver(outputs: Outputs) -> None:
            if not _call(loop, self._deliver, outputs):
                self._inbox.put(None)

        try:
            run_engine(core, self._inbox, deliver)
        except BaseException as error:  # whatever it is, nobody must wait for what will not come
            logger.error("the engine died", exc_info=error)
            _call(loop, self._on_death)
        finally:
            _call(loop, self._on_end)

    # Called on the event loop.

    def _on_ready(self, info: EngineInfo) -> None:
        assert self._ready is not None
        if self._ready.done():  # given up or closed
            self._inbox.put(None)
            return
        self._ended = self._ready.get_loop().create_future()
        self._info = info
        self.state, self.state_reason = "ready", ""
        self._ready.set_result(info)

    def _on_failure(self, error: BaseException) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)

    def _on_death(self) -> None:
        if self.state == "ready":
            self.state, self.state_reason = "failed", "the engine died"
            self._fail_all(EngineDiedError("the engine died while it was computing this request"))

    def _on_end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


def _build(options: EngineOptions) -> tuple[Core, EngineInfo]:
    from sirocco.runtime.build import build_engine  # imports torch

    return build_engine(options)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> bool:
    """Have the event loop call a function. False where the loop is closed: nobody is left to hear of it."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True
