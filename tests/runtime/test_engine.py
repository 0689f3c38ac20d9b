"""`Engine`, the same without asyncio: calls from many threads, forgotten streams, closing. No model computes."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sirocco import AsyncEngine, Engine, SamplingParams
from sirocco.runtime.client import EngineClient
from sirocco.runtime.errors import EngineUnavailableError, RequestError
from sirocco.runtime.wire import Abort, Command, EngineInfo, EngineRequest, Outputs, SequenceOutput

INFO = EngineInfo("tiny", 10**6, 10**6, 16, 10, 1, 2, 4, "cpu", "float32", 0, 0.0)


class Scripted(EngineClient):
    """Answers each request with one token a little later, or with one after which it goes on for ever."""

    def __init__(self, endless: bool = False) -> None:
        super().__init__()
        self.endless = endless
        self.aborted = threading.Event()
        self.may_close = threading.Event()
        self.closing = threading.Event()

    async def start(self, folder: Path | None = None) -> EngineInfo:
        self.state, self._info = "ready", INFO
        return INFO

    async def close(self) -> None:
        self.closing.set()
        self._fail_all(EngineUnavailableError("closed"))
        while not self.may_close.is_set():
            await asyncio.sleep(0.001)
        self.state = "closed"

    def _send(self, command: Command) -> None:
        if isinstance(command, Abort):
            self.aborted.set()
        elif isinstance(command, EngineRequest):
            output = SequenceOutput(command.id, 0, [5], None if self.endless else "length")
            asyncio.get_running_loop().call_later(0.002, self._deliver, Outputs([output], self.stats))


@pytest.fixture
def make_engine() -> Iterator[Callable[[Scripted], Engine]]:
    made: list[tuple[Engine, Scripted]] = []

    def make(client: Scripted) -> Engine:
        made.append((Engine("demo", client=client), client))
        return made[-1][0]

    yield make
    for engine, client in made:
        client.may_close.set()
        engine.close()


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[object]]:
    """Runs work on a thread; what it returns or raises is put into the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def test_a_forgotten_stream_may_be_collected_on_the_loops_own_thread(make_engine) -> None:
    client = Scripted(endless=True)
    engine = make_engine(client)
    held = [engine.stream([3])]
    assert next(held[0]).token_ids == [5]
    engine._loop.call_soon_threadsafe(held.clear)
    assert client.aborted.wait(10)
    client.endless = False
    thread, outcome = in_thread(lambda: engine.generate([3]).token_ids)
    thread.join(10)
    assert outcome == [[5]]


_OPEN_AT_THE_END = """
import asyncio
from sirocco import Engine
from sirocco.runtime.client import EngineClient
from sirocco.runtime.wire import EngineInfo, Outputs, SequenceOutput

class Endless(EngineClient):
    async def start(self, folder=None):
        self.state = "ready"
        self._info = EngineInfo("tiny", 10**6, 10**6, 16, 10, 1, 2, 4, "cpu", "float32", 0, 0.0)
        return self._info

    async def close(self):
        print("closed", flush=True)

    def _send(self, command):
        outputs = Outputs([SequenceOutput(command.id, 0, [5])], self.stats)
        asyncio.get_running_loop().call_soon(self._deliver, outputs)

engine = Engine("demo", client=Endless())
events = engine.stream([3])
next(events)
"""


def test_a_program_with_an_open_stream_ends() -> None:
    ended = subprocess.run([sys.executable, "-c", _OPEN_AT_THE_END], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")


def test_closing_ends_calls_that_wait_for_something_else(make_engine, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Scripted()
    engine, waits = make_engine(client), threading.Event()

    async def forever(*_: object, **__: object) -> list[list[int]]:
        waits.set()
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(engine.asynchronous, "tokenize_inputs", forever)
    thread, outcome = in_thread(lambda: engine.generate("the"))
    assert waits.wait(10)
    client.may_close.set()
    engine.close()
    thread.join(10)
    assert [type(error) for error in outcome] == [EngineUnavailableError]


def test_calls_during_closing_are_refused_and_closing_twice_waits(make_engine) -> None:
    client = Scripted()
    engine = make_engine(client)
    closing = [in_thread(engine.close) for _ in range(2)]
    assert client.closing.wait(10)
    thread, outcome = in_thread(lambda: engine.generate([3]))
    thread.join(10)
    assert [type(error) for error in outcome] == [EngineUnavailableError]
    client.may_close.set()
    for thread, outcome in closing:
        thread.join(10)
        assert outcome == [None]
    assert not engine._thread.is_alive()


def test_several_threads_may_give_any_number_of_prompts(make_engine) -> None:
    engine = make_engine(Scripted())
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(engine.generate, [[3]] * 20) for _ in range(3)]
        assert [len(call.result(30)) for call in calls] == [20] * 3


def test_one_prompt_takes_no_list_of_parameters(make_engine) -> None:
    engine = make_engine(Scripted())
    for prompt in ("the", [3]):
        with pytest.raises(RequestError) as raised:
            engine.generate(prompt, [SamplingParams()])
        assert raised.value.param == "params"


def test_an_engine_that_has_not_been_started_says_so() -> None:
    async def body() -> None:
        engine = AsyncEngine("demo", client=Scripted())
        for call in (engine.generate("the"), engine.generate(["the"]), engine.chat([]), engine.embed(["the"])):
            with pytest.raises(EngineUnavailableError, match="not been started"):
                await call
        for prompt in ("the", [3]):
            with pytest.raises(EngineUnavailableError, match="not been started"):
                engine.submit(prompt)

    asyncio.run(body())
