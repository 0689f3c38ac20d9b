"""Bodies, connections and refusals, whatever the route."""

import asyncio
import logging

import pytest

from sirocco.api import http
from sirocco.api.app import create_app
from sirocco.api.options import ServerOptions

from .harness import CHAT, COMPLETIONS, HELLO, FakeEngine, ask, call, open_request, scenario

CHAT_BODY = {"messages": HELLO}
STREAM_BODY = {"messages": HELLO, "stream": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"3",
        b'{"messages": [',
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"other": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"messages": [], "tools": ' + b'[{"x":' * 50_000 + b"1" + b"}]" * 50_000 + b"}",
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\x00" * 1000,
    ],
    ids=lambda body: f"{bytes(body[:24])!r}-{len(body)}",
)
def test_bodies_that_are_no_request(body):
    reply = ask(CHAT, body, method="POST")
    assert reply.status == 400 and reply.error["type"] == "invalid_request_error"


def test_deep_tool_parameters_do_not_break_the_server():
    deep = b'{"type": "object", "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    tool = b'{"type": "function", "function": {"name": "f", "parameters": %s}}' % deep
    body = b'{"messages": [{"role": "user", "content": "x"}], "tools": [%s]}' % tool
    assert ask(CHAT, body, method="POST").status in (200, 400)


def test_large_body_by_its_length_is_refused_unread():
    async def main():
        connection = open_request(
            create_app(FakeEngine()), CHAT, b"x" * 10, method="POST", headers={"content-length": str(50 * 2**20 + 1)}
        )
        assert (await connection.response()).status == 413
        assert connection.reads == 0

    scenario(main)


def test_large_body_in_pieces_is_refused_when_it_grows_too_large():
    async def main():
        app = create_app(FakeEngine(), ServerOptions(max_body_bytes=1000))
        connection = open_request(app, CHAT, b"x" * 4000, method="POST", pieces=40)
        reply = await connection.response()
        assert reply.status == 413 and reply.error["code"] == "request_too_large"
        assert connection.reads == 11

    scenario(main)


def test_body_in_pieces_is_joined():
    assert ask(CHAT, CHAT_BODY, pieces=7).status == 200


def test_compressed_body():
    assert ask(CHAT, CHAT_BODY, headers={"content-encoding": "gzip"}).status == 415


def test_stalled_body_times_out():
    async def main():
        app = create_app(FakeEngine(), ServerOptions(body_timeout=0.01))
        connection = open_request(app, CHAT, b"xx", method="POST", pieces=2)
        connection._inbox.get_nowait()
        connection._inbox.get_nowait()
        assert (await connection.response()).status == 408

    scenario(main)


def test_a_body_that_trickles_times_out(monkeypatch):
    monkeypatch.setattr(http, "_WHOLE_BODY", 0.2)

    async def main():
        app = create_app(FakeEngine(), ServerOptions(body_timeout=1.0))
        connection = open_request(app, CHAT, b"xx", method="POST", pieces=2)
        connection._inbox.get_nowait()
        connection._inbox.get_nowait()
        while not connection.task.done():
            connection._inbox.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
            await asyncio.sleep(0.02)
        assert (await connection.response()).status == 408

    scenario(main)


def test_client_that_leaves_while_uploading():
    async def main():
        engine = FakeEngine()
        connection = open_request(create_app(engine), CHAT, b"x" * 10, method="POST", pieces=10)
        for _ in range(5):
            connection._inbox.get_nowait()
        connection._inbox._queue.clear()
        connection.leave()
        assert (await connection.response()).status == 0
        assert engine.streams == []

    scenario(main)


@pytest.mark.parametrize("body", [CHAT_BODY, STREAM_BODY], ids=["whole", "stream"])
def test_client_that_leaves_cancels(body):
    async def main():
        for path, payload in ((CHAT, body), (COMPLETIONS, {**body, "messages": None, "prompt": "x"})):
            engine = FakeEngine()
            engine.free = 1
            app = create_app(engine)
            connection = open_request(app, path, payload)
            while not engine.streams:
                await asyncio.sleep(0)
            await engine.streams[0].waiting.wait()
            connection.leave()
            await asyncio.wait_for(connection.task, 5)
            assert engine.streams[0].cancelled.is_set()
            assert app.service.metrics.http_in_flight == 0

    scenario(main)


def test_client_that_leaves_before_the_first_token():
    async def main():
        engine = FakeEngine()
        engine.free = 0
        connection = open_request(create_app(engine), CHAT, STREAM_BODY)
        while not engine.streams:
            await asyncio.sleep(0)
        await engine.streams[0].waiting.wait()
        connection.leave()
        assert (await connection.response()).status == 0
        assert engine.streams[0].cancelled.is_set()

    scenario(main)


def test_client_that_leaves_before_its_template_is_rendered():
    async def main():
        engine = FakeEngine()
        engine.render_gate = asyncio.Event()
        connection = open_request(create_app(engine), CHAT, CHAT_BODY)
        while not engine.rendered:
            await asyncio.sleep(0)
        connection.leave()
        assert (await connection.response()).status == 0
        assert engine.streams == []

    scenario(main)


def test_requests_that_wait_for_their_template_count_as_waiting():
    async def main():
        engine = FakeEngine()
        engine.client.num_open = 13
        engine.render_gate = asyncio.Event()
        app = create_app(engine)
        waiting = [open_request(app, CHAT, CHAT_BODY) for _ in range(3)]  # 16 with those inside the engine
        while len(engine.rendered) < 3:
            await asyncio.sleep(0)
        refused = await call(app, CHAT, CHAT_BODY)
        assert refused.status == 429 and refused.error["code"] == "overloaded" and b"retry-after" in refused.headers
        assert app.service.metrics.rejected == 1
        waiting[0].leave()
        await waiting[0].response()
        engine.render_gate.set()
        assert (await call(app, CHAT, CHAT_BODY)).status == 200
        assert [(await connection.response()).status for connection in waiting] == [0, 200, 200]

    scenario(main)


def test_unread_stream_is_not_drained_and_then_aborted():
    async def main():
        engine = FakeEngine(*"x" * 1000)
        app = create_app(engine, ServerOptions(unread_timeout=0.05, keep_alive=0.01))
        connection = open_request(app, CHAT, STREAM_BODY)
        connection.hold()
        await connection.blocked.wait()
        (stream,) = engine.streams
        assert stream.sent == 1  # nothing more is taken from the engine than can be sent
        await asyncio.wait_for(connection.task, 5)
        assert stream.cancelled.is_set() and stream.sent == 1

    scenario(main)


def test_stream_goes_on_when_read_again():
    async def main():
        engine = FakeEngine(*"hello")
        app = create_app(engine, ServerOptions(unread_timeout=30, keep_alive=0.01))
        connection = open_request(app, CHAT, STREAM_BODY)
        connection.hold()
        await connection.blocked.wait()
        connection.release()
        reply = await connection.response()
        text = "".join(event["choices"][0]["delta"]["content"] for event in reply.events[:-1])
        assert text == "hello" and reply.events[-1] == "[DONE]"

    scenario(main)


def test_silence_is_filled_with_comments():
    async def main():
        engine = FakeEngine()
        engine.free = 0
        connection = open_request(create_app(engine, ServerOptions(keep_alive=0.01)), CHAT, STREAM_BODY)
        await connection.started.wait()
        while len(connection.messages) < 3:
            connection.started.clear()
            await connection.started.wait()
        assert connection.messages[0]["status"] == 200
        assert connection.messages[1]["body"] == connection.messages[2]["body"] == b": keep-alive\n\n"
        engine.gate.set()
        reply = await connection.response()
        assert [event if event == "[DONE]" else event["choices"][0]["delta"]["content"] for event in reply.events] == [
            "Hel",
            "lo",
            "[DONE]",
        ]

    scenario(main)


def test_unknown_route_and_method():
    reply = ask("/v1/nothing\r\n\x1b[31m")
    assert reply.status == 404 and reply.error["code"] == "not_found" and "\n" not in reply.error["message"]
    reply = ask(CHAT)
    assert reply.status == 405 and reply.headers[b"allow"] == b"POST"
    assert ask("/v1/models/fake", {}, method="DELETE").status == 405
    assert ask("/v1/models/{}").status == 404


def test_head_has_no_body():
    reply = ask("/health", method="HEAD")
    assert reply.status == 200 and reply.body == b"" and reply.headers[b"content-length"] == b"2"


def test_request_id_is_echoed_when_it_is_clean():
    assert ask("/health", headers={"x-request-id": "abc-1"}).headers[b"x-request-id"] == b"abc-1"
    assert len(ask("/health", headers={"x-request-id": "a b\x01"}).headers[b"x-request-id"]) == 16
    assert len(ask("/health", headers={"x-request-id": "a" * 200}).headers[b"x-request-id"]) == 16


def test_internal_errors_go_to_the_log_only(caplog):
    engine = FakeEngine()
    engine.submit_error = ZeroDivisionError("/home/secret")
    with caplog.at_level(logging.ERROR, "sirocco.api"):
        reply = ask(CHAT, CHAT_BODY, engine=engine, headers={"x-request-id": "abc"})
    assert reply.status == 500 and b"secret" not in reply.body
    assert "abc" in caplog.text and "ZeroDivisionError" in caplog.text and "/home/secret" in caplog.text


def test_drain_lets_running_requests_finish():
    async def main():
        engine = FakeEngine()
        engine.free = 1
        app = create_app(engine)
        running = open_request(app, CHAT, STREAM_BODY)
        await running.started.wait()
        drained = asyncio.create_task(app.drain(10))
        await asyncio.sleep(0)
        assert (await call(app, CHAT, CHAT_BODY)).status == 503
        assert (await call(app, "/ready")).status == 503
        assert (await call(app, "/health")).status == 200
        assert not drained.done()
        engine.gate.set()
        assert (await running.response()).events[-1] == "[DONE]"
        assert await drained

    scenario(main)


@pytest.mark.parametrize("reading", [True, False])
def test_cut_tells_running_requests(reading, monkeypatch):
    monkeypatch.setattr("sirocco.api.http.FAREWELL_SECONDS", 0.05)

    async def main():
        engine = FakeEngine()
        engine.free = 1
        app = create_app(engine)
        streamed = open_request(app, CHAT, STREAM_BODY)
        await streamed.started.wait()
        whole = open_request(app, CHAT, CHAT_BODY)
        while len(engine.streams) < 2:
            await asyncio.sleep(0)
        assert not await app.drain(0.01)
        if not reading:
            streamed.hold()
        await app.cut()
        reply = await streamed.response()
        if reading:
            assert reply.events[-2]["error"]["code"] == "engine_unavailable" and reply.events[-1] == "[DONE]"
        assert (await whole.response()).status == 503
        assert all(stream.cancelled.is_set() for stream in engine.streams)

    scenario(main)


def test_a_request_that_comes_after_the_cut_is_refused_unread(monkeypatch):
    monkeypatch.setattr("sirocco.api.http.FAREWELL_SECONDS", 0.05)

    async def main():
        engine = FakeEngine()
        engine.free = 1
        app = create_app(engine)
        streamed = open_request(app, CHAT, STREAM_BODY)
        await streamed.started.wait()
        streamed.hold()  # its farewell takes a while
        cut = asyncio.create_task(app.cut())
        await asyncio.sleep(0)
        late = open_request(app, CHAT, b"xx", method="POST", pieces=2)
        assert (await late.response()).status == 503 and late.reads == 0
        await asyncio.wait_for(cut, 5)

    scenario(main)


def test_cut_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("sirocco.api.app.CUT_SECONDS", 0.01)

    async def main():
        app = create_app(FakeEngine())
        app._idle.clear()  # as if a request could not be ended
        await asyncio.wait_for(app.cut(), 5)

    scenario(main)
