"""What is refused before an engine hears of it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sirocco.runtime.client import EngineClient
from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import OverloadedError, RequestError
from sirocco.runtime.request import SamplingParams
from sirocco.runtime.resolve import resolve_request
from sirocco.runtime.wire import Command, Embedded, EmbedRequest, EngineInfo, Outputs

INFO = EngineInfo("tiny", 100, 50, 16, 10, 1, 2, 1, "cpu", "float32", 0, 0.0)
EMBEDS = EngineInfo("tiny", 100, 50, 0, 0, 0, 2, 1, "cpu", "float32", 0, 0.0, kind="embed")


class Wire(EngineClient):
    """Keeps what it is given to send; a connection that is `broken` takes nothing."""

    def __init__(self, info: EngineInfo) -> None:
        super().__init__()
        self.sent: list[Command] = []
        self.broken = False
        self._info, self.state = info, "ready"

    async def start(self, folder: Path | None = None) -> EngineInfo:
        return self.info

    async def close(self) -> None: ...

    def _send(self, command: Command) -> None:
        if self.broken:
            raise ValueError("the frame is too long")
        self.sent.append(command)


def test_embeddings_that_cannot_be_sent_do_not_count() -> None:
    async def body() -> None:
        client = Wire(EMBEDS)
        client.broken = True
        for _ in range(client.info.max_num_seqs + client.info.max_waiting + 1):
            with pytest.raises(ValueError, match="too long"):
                await client.embed([[1, 2]])
        assert client.num_open == 0

    asyncio.run(body())


@pytest.mark.parametrize(
    "sequences, dimensions, param",
    [
        ([[3], [10**30]], None, "input"),
        ([[3], [50]], None, "input"),
        ([[-1]], None, "input"),
        ([[2.5]], None, "input"),
        ([["3"]], None, "input"),
        ([[3]], 10**30, "dimensions"),
        ([[3]], 0, "dimensions"),
        ([[3]], 1.5, "dimensions"),
    ],
)
def test_embeddings_of_what_no_model_takes_are_refused_at_once(sequences, dimensions, param) -> None:
    async def body() -> None:
        client = Wire(EMBEDS)
        with pytest.raises(RequestError) as raised:
            await asyncio.wait_for(client.embed(sequences, dimensions), 5)
        assert raised.value.param == param
        assert client.num_open == 0 and not client.sent

    asyncio.run(body())


def test_embeddings_are_counted_until_they_are_answered() -> None:
    async def body() -> None:
        client = Wire(EMBEDS)
        waiting = [asyncio.create_task(client.embed([[1], []])) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await client.embed([[1]])
        for sent in list(client.sent):
            assert isinstance(sent, EmbedRequest)
            client._deliver(Outputs([], client.stats, [Embedded(sent.id, [b"abcd", b""])]))
        assert await asyncio.gather(*waiting) == [[b"abcd", b""]] * 3
        assert client.num_open == 0

    asyncio.run(body())


CONFIG = ModelConfig({}, "LlamaForCausalLM")


@pytest.mark.parametrize("prompt", [[1, 2.0], [1, "2"], [1, None], [1, [2]], [10**30], [50], [-1]])
def test_prompts_of_what_are_no_token_ids_are_refused(prompt: Sequence[int]) -> None:
    with pytest.raises(RequestError) as raised:
        resolve_request(1, prompt, SamplingParams(), CONFIG, INFO)
    assert raised.value.param == "prompt"


def test_token_ids_of_other_types_become_plain_integers() -> None:
    request = resolve_request(1, [3, 4, np.int32(5), True], SamplingParams(), CONFIG, INFO)
    assert request.prompt_token_ids == [3, 4, 5, 1]
    assert {type(token_id) for token_id in request.prompt_token_ids} == {int}


@pytest.mark.parametrize("salt", ["\ud800", 5, b"salt"])
def test_a_salt_that_cannot_be_hashed_is_refused(salt: str) -> None:
    with pytest.raises(RequestError) as raised:
        resolve_request(1, [3], SamplingParams(cache_salt=salt), CONFIG, INFO)
    assert raised.value.param == "cache_salt"
    assert resolve_request(1, [3], SamplingParams(cache_salt="sál"), CONFIG, INFO).salt == "sál"
