"""The real server on a free port, with a scripted engine: sockets, clients, signals."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request

import openai
import pytest

from sirocco.api import server
from sirocco.api.app import create_app
from sirocco.api.options import ServerOptions
from sirocco.runtime.errors import ModelLoadError

from .harness import COMPLETIONS, ServedEngine, open_request, scenario

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class Signals:
    """Stands in for the process's signals, so that a server can run on a thread."""

    def __init__(self, loop):
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.exit_code = 0
        Signals.latest, Signals.loop = self, loop


class Running:
    """A server on a thread of this process."""

    def __init__(self, engine, monkeypatch, **options):
        monkeypatch.setattr(server, "_Signals", Signals)
        self.engine = engine
        self.port = server.free_address("127.0.0.1", 0)[1]
        self.options = ServerOptions(port=self.port, **options)
        self.exit_code = None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        self.exit_code = server.run(lambda: self.engine, self.options)

    def __enter__(self):
        self.thread.start()
        assert self.engine.started.wait(10)
        self.connection().close()
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self):
        if not self.thread.is_alive():
            return
        Signals.loop.call_soon_threadsafe(Signals.latest.first.set)
        self.thread.join(15)
        assert not self.thread.is_alive()

    def connection(self):
        for _ in range(100):  # the engine may start before the port is open
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", self.port), timeout=5)
            time.sleep(0.02)
        raise TimeoutError

    def client(self):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="x", max_retries=0)


def test_openai_client(monkeypatch):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "Hi"}]
    with Running(ServedEngine("Hel", "lo"), monkeypatch) as running, running.client() as client:
        chat = client.chat.completions.create(model="fake", messages=messages, logprobs=True, top_logprobs=1)
        assert chat.choices[0].message.content == "Hello" and chat.usage.completion_tokens == 5
        assert chat.choices[0].logprobs.content[0].token == "H"
        options = {"include_usage": True}
        stream = client.chat.completions.create(model="fake", messages=messages, stream=True, stream_options=options)
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
        assert chunks[-1].usage.completion_tokens == 5 and chunks[-1].choices == []
        text = client.completions.create(model="default", prompt=["a", "b"], logprobs=1)
        assert [choice.text for choice in text.choices] == ["Hello", "Hello"]
        parts = client.completions.create(model="fake", prompt="a", stream=True)
        assert "".join(part.choices[0].text for part in parts) == "Hello"
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").object == "model"
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-9", messages=messages)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="fake", messages=messages, n=1000000)
        assert refused.value.param == "n"
        running.engine.script = (CALL[:30], CALL[30:])
        with client.chat.completions.stream(model="fake", messages=messages, tools=[tool]) as events:
            (call,) = events.get_final_completion().choices[0].message.tool_calls
        assert call.function.name == "add" and call.function.arguments == '{"a": 1}'
    assert running.exit_code == 0 and running.engine.closed.is_set()


def test_a_client_that_leaves_cancels(monkeypatch):
    engine = ServedEngine("Hel", "lo")
    engine.free = 1
    with Running(engine, monkeypatch, drain_timeout=0.0) as running, running.client() as client:
        stream = client.completions.create(model="fake", prompt="a", stream=True)
        assert next(iter(stream)).choices[0].text == "Hel"
        stream.close()
        cancelled = asyncio.run_coroutine_threadsafe(engine.streams[0].cancelled.wait(), Signals.loop)
        assert cancelled.result(5)


def test_drain_timeout_cuts_what_still_runs(monkeypatch):
    engine = ServedEngine("Hel", "lo")
    engine.free = 1
    with Running(engine, monkeypatch, drain_timeout=0.1) as running, running.client() as client:
        stream = client.completions.create(model="fake", prompt="a", stream=True)
        chunks = iter(stream)
        assert next(chunks).choices[0].text == "Hel"
        idle = socket.create_connection(("127.0.0.1", running.port))  # must not hold up the end
        running.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            next(chunks)
        idle.close()
    assert running.exit_code == 0 and engine.streams[0].cancelled.is_set()


def test_model_that_does_not_load(monkeypatch):
    monkeypatch.setattr(server, "_Signals", Signals)
    engine = ServedEngine(load_error=ModelLoadError("no such folder"))
    with pytest.raises(ModelLoadError, match="no such folder"):
        server.run(lambda: engine, ServerOptions(port=0))
    assert engine.closed.is_set()


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(server.ListenError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            server.run(ServedEngine, ServerOptions(port=port))


@pytest.mark.parametrize("host", ["203.0.113.1", "x" * 300])
def test_address_that_is_not_ours(host):
    with pytest.raises(server.ListenError):
        server.free_address(host, 0)


def test_a_name_that_nobody_knows(monkeypatch):
    def ask(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    with pytest.raises(server.ListenError, match="cannot listen on nowhere:5: Name or service not known"):
        server.free_address("nowhere", 5)


def test_binding_beyond_loopback_without_a_key_warns(monkeypatch, caplog):
    monkeypatch.setattr(server, "_Signals", Signals)
    for keys, warned in (((), True), (("k",), False)):
        caplog.clear()
        with pytest.raises(ModelLoadError):
            engine = ServedEngine(load_error=ModelLoadError("x"))
            server.run(lambda engine=engine: engine, ServerOptions(host="0.0.0.0", port=0, api_keys=keys))
        assert ("--api-key" in caplog.text) is warned


def test_a_second_signal_ends_the_farewells_too():
    class Stuck:
        async def drain(self, timeout):
            signals.second.set()

        async def cut(self):
            await asyncio.Event().wait()

    class Signalled:
        first, second = asyncio.Event(), asyncio.Event()

    signals = Signalled()
    asyncio.run(asyncio.wait_for(server._end(Stuck(), ServerOptions(), signals), 10))


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"])
def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch, sent):
    monkeypatch.setattr(server, "HEADER_TIMEOUT_MS", 100)
    with Running(ServedEngine("Hel", "lo"), monkeypatch) as running, running.connection() as idle:
        idle.sendall(sent)
        assert idle.recv(100) == b""


@pytest.mark.parametrize(
    ("files", "raised", "connections"),
    [
        ((256, 256), 256, 128),
        ((1024, 2000), 2000, 1872),
        ((1024, resource.RLIM_INFINITY), 4224, 4096),
        ((20000, 20000), None, 4096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, 4096),
    ],
)
def test_connections_fit_into_the_files_that_may_be_open(monkeypatch, files, raised, connections):
    limits = [files]
    monkeypatch.setattr(server.resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(server.resource, "setrlimit", lambda which, pair: limits.append(pair))
    assert server._connections() == connections
    assert limits[1:] == ([] if raised is None else [(raised, files[1])])


def test_a_server_whose_output_nobody_reads_goes_on(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        server._announce("127.0.0.1", 1234, "demo")
        print("more", flush=True)


def test_a_second_signal_still_tells_those_who_listen():
    class Signalled:
        first, second = asyncio.Event(), asyncio.Event()

    async def main():
        engine = ServedEngine("Hel", "lo")
        engine.free = 1
        app = create_app(engine)
        running = open_request(app, COMPLETIONS, {"prompt": "x", "stream": True})
        await running.started.wait()
        Signalled.second.set()
        await server._end(app, ServerOptions(), Signalled())
        assert (await running.response()).events[-2]["error"]["code"] == "engine_unavailable"

    scenario(main)


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from api.harness import ServedEngine
    from sirocco.api import server
    from sirocco.api.options import ServerOptions
    engine = ServedEngine("Hel", "lo")
    engine.free = 1
    raise SystemExit(server.run(lambda: engine, ServerOptions(port=0, drain_timeout=60.0)))
"""


@pytest.mark.parametrize(
    "number, running, exit_code", [(signal.SIGTERM, False, 0), (signal.SIGTERM, True, 143), (signal.SIGINT, True, 130)]
)
def test_signals(number, running, exit_code):
    script = textwrap.dedent(SCRIPT.format(tests=os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    command = [sys.executable, "-P", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[-1]
        process.stdout.readline()
        if running:
            body = b'{"prompt": "x", "stream": true}'
            answer = urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body), timeout=10)
            assert b"Hel" in answer.readline()
        process.send_signal(number)
        assert "draining" in process.stderr.readline()
        if running:
            process.send_signal(number)
        assert process.wait(10) == exit_code
