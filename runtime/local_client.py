"""An engine on a thread of this process."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import msgspec

from sirocco.runtime.client import EngineClient
from sirocco.runtime.core import Core, run_engine
from sirocco.runtime.errors import EngineUnavailableError
from sirocco.runtime.host import prepare_process
from sirocco.runtime.wire import Command, EngineInfo, EngineOptions, Outputs

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

    async def start(self, folder: Path | None = None) -> EngineInfo:
        if folder is not None:
            self.options = msgspec.structs.replace(self.options, folder=str(folder))
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineInfo] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, ready), name="sirocco-engine", daemon=True)
        self._thread.start()
        try:
            self._info = await ready
        except BaseException as error:
            self.state, self.state_reason = "failed", str(error)
            raise
        self.state, self.state_reason = "ready", ""
        return self._info

    async def close(self) -> None:
        if self._thread is None or self.state == "closed":
            return
        self.state, self.state_reason = "closed", "the engine was closed"
        self._inbox.put(None)
        self._fail_all(EngineUnavailableError(self.state_reason))
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _send(self, command: Command) -> None:
        self._inbox.put(command)

    def _run(self, loop: asyncio.AbstractEventLoop, ready: "asyncio.Future[EngineInfo]") -> None:
        prepare_process()
        try:
            core, info = (self._build or _build)(self.options)
        except BaseException as error:
            loop.call_soon_threadsafe(_set_exception, ready, error)
            return
        loop.call_soon_threadsafe(_set_result, ready, info)

        def deliver(outputs: Outputs) -> None:
            loop.call_soon_threadsafe(self._deliver, outputs)

        run_engine(core, self._inbox, deliver)


def _build(options: EngineOptions) -> tuple[Core, EngineInfo]:
    from sirocco.runtime.build import build_engine  # imports torch

    return build_engine(options)


def _set_result(ready: "asyncio.Future[EngineInfo]", info: EngineInfo) -> None:
    if not ready.done():
        ready.set_result(info)


def _set_exception(ready: "asyncio.Future[EngineInfo]", error: BaseException) -> None:
    if not ready.done():
        ready.set_exception(error)
