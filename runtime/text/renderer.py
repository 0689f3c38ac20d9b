"""A template worker process and the clock that watches it."""

import asyncio
import atexit
import os
import select
import signal
import site
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import msgspec

from sirocco.runtime.errors import EngineUnavailableError, OverloadedError, RequestError, TemplateError
from sirocco.runtime.text.template_wire import (
    EXIT_MEMORY,
    HEADER,
    MAX_REPLY,
    READY,
    Failed,
    Rendered,
    RenderRequest,
    frame,
)

START_SECONDS = 30.0  # for the worker's interpreter to start, on a busy machine
RENDER_SECONDS = 2.0  # of processor time
STALL_SECONDS = 30.0  # by the clock: a render that takes as long has not been given its processor time
_MODULE = "sirocco.runtime.text.template_worker"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "PYTHONHOME", "VIRTUAL_ENV")


class TemplateRenderer:
    """Renders untrusted templates in one worker process, which is started when first needed and replaced when it dies.

    Calls from any thread and any event loop queue up. A render that goes over a limit, such as `seconds` of processor
    time, costs the worker its life and its caller a `TemplateError`; the next one gets a new worker.
    """

    def __init__(self, seconds: float = RENDER_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sirocco-template")
        self._encode = msgspec.json.Encoder().encode
        self._decoder: msgspec.msgpack.Decoder[Rendered | Failed] = msgspec.msgpack.Decoder(Rendered | Failed)

    def render(self, template: str, variables: Mapping[str, object]) -> str:
        """Render a template's text with variables of JSON types.

        Raises `TemplateError` when it fails or goes over a limit, `RequestError` for variables that are no JSON data,
        `EngineUnavailableError` without a worker, and `OverloadedError` when the machine is too busy.
        """
        request = frame(self._payload(template, variables))
        with self._lock:
            reply = self._ask(request)
        if isinstance(reply, Failed):
            raise TemplateError(reply.message)
        return reply.text

    async def queued(self, work: Callable[[], str]) -> str:
        """What `work`, which renders, returns, without blocking the event loop. Cancelling leaves the queue."""
        if self._closed:
            raise _closed()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """End the worker process; a render in progress fails with `EngineUnavailableError`."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        if (worker := self._worker) is not None:
            worker.end()  # whoever holds the lock may wait for it
        with self._lock:
            self._drop_worker()

    def _payload(self, template: str, variables: Mapping[str, object]) -> bytes:
        try:
            return self._encode(RenderRequest(template, dict(variables)))
        except UnicodeEncodeError:
            raise RequestError("the messages are not valid Unicode: there is a lone surrogate", "messages") from None
        except ValueError:
            raise RequestError("the messages hold a number of too many digits", "messages") from None
        except (TypeError, RecursionError) as error:
            raise RequestError(f"the messages cannot be given to the chat template: {error}", "messages") from None

    def _ask(self, request: bytes) -> Rendered | Failed:
        while True:
            if self._closed:
                raise _closed()
            worker = self._worker
            used_before = worker is not None
            if worker is None:
                worker = self._worker = _Worker(self._seconds)
            try:
                return self._decoder.decode(worker.ask(request))
            except TimeoutError:
                self._drop_worker()
                raise OverloadedError("The machine is too busy to render the chat template; try again later.") from None
            except _WorkerEnded as end:
                self._drop_worker()
                if used_before and not end.by_this_render:
                    continue  # it may have died of what earlier renders left behind: a fresh one decides
                raise TemplateError(end.reason) from None
            except msgspec.DecodeError:
                self._drop_worker()
                raise EngineUnavailableError("The process that renders chat templates answered nonsense.") from None
            except BaseException:
                self._drop_worker()  # interrupted halfway, so the next reply would be of this request
                raise

    def _drop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()


@cache
def default_renderer() -> TemplateRenderer:
    """The renderer that this process's chat templates share; it is closed at exit."""
    renderer = TemplateRenderer()
    atexit.register(renderer.close)
    return renderer


class _WorkerEnded(Exception):
    """The worker process is gone; `reason` is a sentence for the caller."""

    def __init__(self, reason: str, by_this_render: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.by_this_render = by_this_render


class _Worker:
    """The worker process, ready to render."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_environment(),
                process_group=0,  # Ctrl-C in the terminal is for us
            )
        except OSError:
            raise _not_started() from None
        assert self._process.stdin and self._process.stdout  # both are pipes
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        try:
            self._read(len(READY), time.monotonic() + START_SECONDS)
        except (TimeoutError, _WorkerEnded):
            self.kill()
            raise _not_started() from None

    def ask(self, request: bytes) -> bytes:
        """Send a frame, return the reply's payload. `TimeoutError` or `_WorkerEnded`: the worker must be killed."""
        deadline = time.monotonic() + STALL_SECONDS
        self._write(request, deadline)
        size = int.from_bytes(self._read(HEADER, deadline), "big")
        if size > MAX_REPLY:
            raise _WorkerEnded("The chat template wrote too much.")
        return self._read(size, deadline)

    def end(self) -> None:
        """Let the process end, while another thread may still be asking it."""
        self._process.kill()

    def kill(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        with self._process:  # waits
            pass

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                _wait(self._requests, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise self._ended() from None

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = os.read(self._replies, size - len(data))
            except BlockingIOError:
                _wait(self._replies, select.POLLIN, deadline)
                continue
            if not piece:
                raise self._ended()
            data += piece
        return bytes(data)

    def _ended(self) -> _WorkerEnded:
        code = self._process.wait()
        if code == EXIT_MEMORY:
            return _WorkerEnded("The chat template needed more memory than it may use.")
        if code == -signal.SIGPROF:
            return _WorkerEnded(f"The chat template took longer than {self._seconds:g} s of processor time.", True)
        return _WorkerEnded("The chat template made its process end.")


def _closed() -> EngineUnavailableError:
    return EngineUnavailableError("The template renderer is closed.")


def _not_started() -> EngineUnavailableError:
    return EngineUnavailableError("The process that renders chat templates did not start.")


def _wait(fd: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _environment() -> dict[str, str]:
    """The worker's environment: what an interpreter needs to find the same packages, and none of our secrets."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    root = str(Path(__file__).parents[3])
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if root not in site.getsitepackages():
        path.append(root)  # a source tree that only sys.path knew of
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
