"""When the engine's process is started again, and when it is given up; without a model."""

import asyncio
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from sirocco.runtime import process_client
from sirocco.runtime.errors import EngineDiedError, EngineUnavailableError, ModelLoadError, RequestError
from sirocco.runtime.process_client import ProcessClient
from sirocco.runtime.wire import EngineOptions

_WORKER = """
import socket, sys
from sirocco.runtime.wire import EngineInfo, LoadFailed, frame
connection = socket.socket(fileno=int(sys.argv[1]))
connection.recv(1 << 16)
connection.sendall(frame({answer}))
while connection.recv(1 << 16):
    pass
"""
GOOD = _WORKER.format(answer="EngineInfo('tiny', 100, 50, 16, 10, 1, 2, 1, 'cpu', 'float32', 0, 0.0)")
GOOD_EMBEDS = GOOD.replace("0.0)", "0.0, 'embed')")
REFUSES = _WORKER.format(answer="LoadFailed('there is no such model')")
FOR_NOW = _WORKER.format(answer="LoadFailed('there is not enough memory', True)")
DIES_LOADING = "raise SystemExit(1)"
NO_FORK = None

Script = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Says what becomes of the next processes, one after the other; the last one's way is that of all that follow."""
    launch = asyncio.create_subprocess_exec
    plan: list[str | None] = []

    async def scripted(*command: str, **options: Any) -> asyncio.subprocess.Process:
        code = plan.pop(0) if len(plan) > 1 else plan[0]
        if code is NO_FORK:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await launch(sys.executable, "-P", "-c", code, command[-1], **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", scripted)
    monkeypatch.setattr(process_client, "FIRST_BACKOFF", 0.001)
    return lambda *codes: plan.extend(codes)


def run(body: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


async def settled(client: ProcessClient, states: Sequence[str] = ("ready", "failed")) -> None:
    while client.state not in states:
        await asyncio.sleep(0.005)


async def killed() -> ProcessClient:
    """A client whose first engine has been killed, and which has noticed."""
    client = ProcessClient(EngineOptions())
    await client.start()
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while client.pid == pid:  # not its state: it may have given up by the time one looks
        await asyncio.sleep(0.005)
    return client


def test_a_start_that_fails_is_one_death_of_several(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script(GOOD, NO_FORK, DIES_LOADING, FOR_NOW, GOOD)

    async def body() -> None:
        pairs: list[tuple[socket.socket, socket.socket]] = []
        make = socket.socketpair
        monkeypatch.setattr(socket, "socketpair", lambda: pairs.append(make()) or pairs[-1])  # type: ignore[func-returns-value]
        client = await killed()
        await settled(client)
        assert client.state == "ready"
        assert [ours.fileno() >= 0 for ours, _ in pairs] == [False, False, False, False, True]
        await client.close()

    run(body())


@pytest.mark.parametrize("code", [NO_FORK, DIES_LOADING, FOR_NOW], ids=["fork", "load", "memory"])
def test_starts_that_fail_too_often_are_final(code: str | None, script: Script, monkeypatch) -> None:
    monkeypatch.setattr(process_client, "MAX_DEATHS", 3)
    monkeypatch.setattr(process_client, "DEATH_WINDOW", 0.0)  # however long each of them took
    script(GOOD, code)

    async def body() -> None:
        client = await killed()
        await settled(client)
        assert client.state == "failed" and "3 times" in client.state_reason
        await client.close()

    run(body())


def test_a_model_that_can_no_longer_be_loaded_is_final(script: Script) -> None:
    script(GOOD, REFUSES)

    async def body() -> None:
        client = await killed()
        await settled(client)
        assert (client.state, client.state_reason) == ("failed", "there is no such model")
        await client.close()

    run(body())


@pytest.mark.parametrize("code", [NO_FORK, DIES_LOADING, REFUSES, FOR_NOW], ids=["fork", "load", "refuse", "memory"])
def test_the_first_start_fails_at_once(code: str | None, script: Script) -> None:
    script(code)

    async def body() -> None:
        client = ProcessClient(EngineOptions())
        with pytest.raises(ModelLoadError) as raised:
            await client.start()
        assert (client.state, client.state_reason) == ("failed", str(raised.value))
        assert client.pid is None
        await client.close()

    run(body())


def test_an_engine_that_is_closed_while_its_process_begins_leaves_none(script: Script, monkeypatch) -> None:
    script(GOOD)
    begun: list[asyncio.subprocess.Process] = []

    async def body() -> None:
        client = ProcessClient(EngineOptions())
        launch = asyncio.create_subprocess_exec

        async def closing(*command: Any, **options: Any) -> asyncio.subprocess.Process:
            begun.append(await launch(*command, **options))
            await client.close()
            return begun[0]

        monkeypatch.setattr(asyncio, "create_subprocess_exec", closing)
        with pytest.raises(EngineUnavailableError):
            await client.start()
        assert (client.state, client.pid) == ("closed", None)
        await asyncio.wait_for(begun[0].wait(), 10)

    run(body())


def test_embeddings_that_were_there_at_two_deaths_are_refused(script: Script) -> None:
    script(GOOD_EMBEDS)

    async def body() -> None:
        client = ProcessClient(EngineOptions())
        await client.start()
        for _ in range(2):
            waiting = asyncio.create_task(client.embed([[1, 2]]))
            await asyncio.sleep(0)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError):
                await waiting
            await settled(client)
        with pytest.raises(RequestError, match="died"):
            await asyncio.wait_for(client.embed([[1, 2]]), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.embed([[1], [2]]), 0.05)
        assert client.num_open == 0
        await client.close()

    run(body())


def test_an_error_stream_without_a_file_is_no_obstacle(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    script(GOOD)

    async def body() -> None:
        client = ProcessClient(EngineOptions())
        await client.start()
        await client.close()

    run(body())
