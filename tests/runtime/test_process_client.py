"""The engine in its own process: it answers, dies, comes back, and refuses what kills it."""

import asyncio
import os
import signal
import time

import pytest

from sirocco import AsyncEngine, SamplingParams
from sirocco.runtime import process_client
from sirocco.runtime.errors import EngineDiedError, EngineUnavailableError, ModelLoadError, RequestError
from sirocco.runtime.process_client import ProcessClient
from sirocco.runtime.wire import EngineOptions

LONG = SamplingParams(max_tokens=1900, temperature=0, ignore_eos=True)


async def ready(client: ProcessClient) -> None:
    while client.state != "ready":
        await asyncio.sleep(0.01)


def test_an_engine_that_is_killed_comes_back(tiny_model):
    async def body() -> None:
        client = ProcessClient(EngineOptions(model=str(tiny_model), max_num_seqs=4))
        async with AsyncEngine(str(tiny_model), client=client) as engine:
            expected = await engine.generate("the wind", SamplingParams(max_tokens=8, temperature=0))
            first_pid = client.pid
            streams = [engine.submit(prompt, LONG) for prompt in ("the wind", "rain", "rain")]
            await anext(streams[0])
            killed = time.monotonic()
            os.kill(client.pid, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(EngineDiedError):
                    while True:
                        await anext(stream)
            assert time.monotonic() - killed < 10.0  # a second, on a machine that has time for us
            assert client.state == "restarting"
            with pytest.raises(EngineUnavailableError):
                engine.submit("the wind")
            await ready(client)
            engine.submit("rain", LONG).cancel()  # twice there, but at one death
            assert client.pid != first_pid
            again = await engine.generate("the wind", SamplingParams(max_tokens=8, temperature=0))
            assert again.token_ids == expected.token_ids

            stream = engine.submit("rain", LONG)
            await anext(stream)
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError):
                while True:
                    await anext(stream)
            await ready(client)
            with pytest.raises(RequestError, match="died"):
                engine.submit("rain", LONG)  # present at both deaths
            await engine.generate("the wind", SamplingParams(max_tokens=1))  # present at one

    asyncio.run(body())


def test_too_many_deaths_are_final(tiny_model, monkeypatch):
    monkeypatch.setattr(process_client, "MAX_DEATHS", 2)

    async def body() -> None:
        client = ProcessClient(EngineOptions(model=str(tiny_model), max_num_seqs=4))
        await client.start()
        for _ in range(2):
            await ready(client)
            os.kill(client.pid, signal.SIGKILL)
            while client.state == "ready":
                await asyncio.sleep(0.01)
        while client.state == "restarting":
            await asyncio.sleep(0.01)
        assert client.state == "failed" and "2 times" in client.state_reason
        await client.close()

    asyncio.run(body())


def test_a_model_that_cannot_be_loaded_says_why(tmp_path):
    async def body() -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "vocab_size": 3}')
        client = ProcessClient(EngineOptions(model=str(tmp_path)))
        with pytest.raises(ModelLoadError):
            await client.start()
        assert client.state == "failed"
        await client.close()

    asyncio.run(body())


def test_closing_ends_the_process(tiny_model):
    async def body() -> None:
        client = ProcessClient(EngineOptions(model=str(tiny_model), max_num_seqs=4))
        await client.start()
        pid = client.pid
        await client.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(body())
