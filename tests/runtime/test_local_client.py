"""The engine on a thread of this process: nobody waits for one that has ended, or that never began."""

import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest

from sirocco.runtime import local_client
from sirocco.runtime.core import Core
from sirocco.runtime.errors import EngineDiedError, EngineUnavailableError, SiroccoError
from sirocco.runtime.local_client import LocalClient
from sirocco.runtime.wire import (
    Command,
    EngineInfo,
    EngineOptions,
    EngineRequest,
    EngineStats,
    Outputs,
    Pause,
    Sampling,
    SequenceOutput,
)

INFO = EngineInfo("tiny", 100, 50, 16, 10, 1, 2, 1, "cpu", "float32", 0, 0.0)
REQUEST = EngineRequest(1, [3], Sampling(4))


class Brittle:
    """A core that never has anything to say, and breaks at what it is told to."""

    def __init__(self, breaks: type | None) -> None:
        self.breaks = breaks

    def apply(self, command: Command) -> None:
        if type(command) is self.breaks:
            raise ValueError("no such thing")

    def advance(self) -> tuple[bool, Outputs]:
        if self.breaks is None:
            raise ValueError("nothing works")
        return False, Outputs([], EngineStats())


class Heard:
    """A sink that keeps the error it is given."""

    def __init__(self) -> None:
        self.error: SiroccoError | None = None

    def push(self, output: SequenceOutput) -> None: ...

    def fail(self, error: SiroccoError) -> None:
        self.error = error


def client_of(build: Callable[[EngineOptions], tuple[Core, EngineInfo]]) -> LocalClient:
    return LocalClient(EngineOptions(), build)


def run(body: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 20))


async def failed(client: LocalClient) -> None:
    while client.state == "ready":
        await asyncio.sleep(0.001)


def test_a_thread_that_dies_ends_its_requests() -> None:
    async def body() -> None:
        client, sink = client_of(lambda options: (Brittle(EngineRequest), INFO)), Heard()
        await client.start()
        client.add(REQUEST, sink)
        await failed(client)
        assert isinstance(sink.error, EngineDiedError)
        assert client.state == "failed" and client.num_open == 0
        with pytest.raises(EngineUnavailableError):
            client.add(REQUEST, sink)
        await client.close()

    run(body())


def test_a_thread_that_dies_at_once_is_never_ready_again() -> None:
    async def body() -> None:
        client = client_of(lambda options: (Brittle(None), INFO))
        await client.start()
        await failed(client)
        assert client.state == "failed"
        await client.close()

    run(body())


def test_a_process_that_cannot_be_prepared_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare() -> None:
        raise RuntimeError("no home")

    monkeypatch.setattr(local_client, "prepare_process", prepare)

    async def body() -> None:
        with pytest.raises(RuntimeError, match="no home"):
            await client_of(lambda options: (Brittle(None), INFO)).start()

    run(body())


def test_closing_does_not_wait_for_a_model_that_is_being_loaded() -> None:
    loaded = threading.Event()

    def build(options: EngineOptions) -> tuple[Core, EngineInfo]:
        assert loaded.wait(30)
        return Brittle(Pause), INFO

    async def body() -> None:
        client = client_of(build)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.start(), 0.01)
        await asyncio.wait_for(client.close(), 5)

        client = client_of(build)
        starting = asyncio.create_task(client.start())
        await asyncio.sleep(0.01)
        await asyncio.wait_for(client.close(), 5)
        with pytest.raises(EngineUnavailableError):
            await starting
        loaded.set()
        await asyncio.to_thread(client._thread.join)
        assert client.state == "closed"

    run(body())


def test_a_loop_that_is_gone_ends_the_thread() -> None:
    async def body() -> LocalClient:
        client = client_of(lambda options: (Brittle(Pause), INFO))
        await client.start()
        return client

    client = asyncio.run(body())
    client._inbox.put(REQUEST)
    client._thread.join(5)
    assert not client._thread.is_alive()
