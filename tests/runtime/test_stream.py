"""What a request's outputs become for its reader, without an engine."""

import asyncio
import time

import msgspec
import pytest

from sirocco.runtime.errors import GenerationError
from sirocco.runtime.request import Result, SamplingParams, StreamEvent, TokenLogprob
from sirocco.runtime.stream import RequestStream
from sirocco.runtime.text.tools import HermesParser
from sirocco.runtime.wire import EngineRequest, Sampling, SequenceOutput


class Digits:
    """A detokenizer: a token is a digit."""

    def push(self, ids):
        return "".join(str(i % 10) for i in ids)

    def finish(self):
        return ""


class Characters(Digits):
    """A detokenizer: a token is a character."""

    def push(self, ids):
        return "".join(map(chr, ids))


class Nobody:
    """A client that does nothing, and notes what it was told to stop."""

    def __init__(self):
        self.aborted = []

    def abort(self, id, index=None):
        self.aborted.append(index)

    def pause(self, id, paused): ...


def stream_of(n: int = 1, **params: object) -> RequestStream:
    request = EngineRequest(1, [3], Sampling(10**6), n=n)
    return RequestStream(Nobody(), request, SamplingParams(n=n, **params), Digits)


def output(index: int, token: int, reason: str | None = None) -> SequenceOutput:
    return SequenceOutput(1, index, [token], reason, [TokenLogprob(token, -1.0, {})])


def result_after(stream: RequestStream, outputs: list[SequenceOutput]) -> tuple[Result, float]:
    """The result once all outputs are there, and the seconds of processor time that it took from then on."""

    async def main() -> tuple[Result, float]:
        task = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        for each in outputs:
            stream.push(each)
        start = time.thread_time()
        return await task, time.thread_time() - start

    return asyncio.run(main())


def test_the_cost_of_a_long_answer_grows_with_its_length_only():
    outputs = [output(0, token) for token in range(80_000)]
    result, seconds = result_after(stream_of(), [*outputs, output(0, 7, "length")])
    assert result.token_ids == [*range(80_000), 7] and len(result.logprobs) == 80_001
    assert seconds < 2  # a copy for each token would take a multiple


def test_choices_that_come_in_turns_are_joined_by_choice():
    outputs = [output(index, 10 * step + index) for step in range(3) for index in range(3)]
    stream = stream_of(n=3)

    async def main() -> None:
        for each in [*outputs, output(1, 9, "stop"), output(0, 8, "length"), output(2, 7, "length")]:
            stream.push(each)
        events = [event async for event in stream]
        assert [event.index for event in events] == [0, 1, 2]
        assert [event.token_ids for event in events] == [[0, 10, 20, 8], [1, 11, 21, 9], [2, 12, 22, 7]]
        assert [event.text for event in events] == ["0008", "111", "2227"], "the token that ended it is no text"
        assert [[entry.token_id for entry in event.logprobs] for event in events] == [e.token_ids for e in events]
        assert [event.usage is not None for event in events] == [False, False, True]
        assert [each.token_ids for each in outputs] == [[10 * s + i] for s in range(3) for i in range(3)], "unchanged"

    asyncio.run(main())


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(("stop", "text"), [((), CALL), (("a",), "<tool_c"), (("xyz",), CALL)])
def test_a_choice_ends_behind_its_first_call_when_asked_to(size, stop, text):
    request = EngineRequest(1, [3], Sampling(10**6))
    client = Nobody()
    params = SamplingParams(stop=stop)
    stream = RequestStream(client, request, params, Characters, first_call=HermesParser)

    async def main() -> list[StreamEvent]:
        said = [ord(char) for char in CALL + " and " + CALL]
        for at in range(0, len(said), size):
            stream.push(SequenceOutput(1, 0, said[at : at + size], None))
        return [event async for event in stream]

    events = asyncio.run(asyncio.wait_for(main(), 10))
    assert "".join(event.text for event in events) == text
    assert events[-1].finish_reason == "stop" and client.aborted == [0]
    assert events[-1].usage.completion_tokens == sum(len(event.token_ids) for event in events) < len(CALL) + 1


def test_a_choice_without_a_whole_call_ends_as_it_does():
    request = EngineRequest(1, [3], Sampling(10**6))
    stream = RequestStream(Nobody(), request, SamplingParams(), Characters, first_call=HermesParser)
    said = [ord(char) for char in CALL[:-3]]
    result, _ = result_after(stream, [SequenceOutput(1, 0, said, "length")])
    assert result.text == CALL[:-3] and result.finish_reason == "length"


def test_choices_ahead_wait_for_the_log_probabilities_of_the_prompt():
    stream = stream_of(n=3, prompt_logprobs=1)
    told = [None, TokenLogprob(3, -1.0, {})]

    async def main() -> None:
        stream.push(output(2, 5))
        stream.push(output(1, 6))
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.01)
        assert not reading.done()
        stream.push(msgspec.structs.replace(output(0, 7), prompt_logprobs=told))
        events = [await reading, await anext(stream), await anext(stream)]
        assert [event.index for event in events] == [0, 2, 1] and stream.prompt_logprobs == told
        stream.push(output(1, 8))
        assert (await anext(stream)).token_ids == [8]

    asyncio.run(asyncio.wait_for(main(), 10))


def test_an_error_ends_the_stream_behind_what_came_before():
    stream = stream_of(n=2)

    async def main() -> None:
        stream.push(output(1, 5))
        stream.push(SequenceOutput(1, 0, [], "error", error="not finite"))
        assert (await anext(stream)).token_ids == [5]
        with pytest.raises(GenerationError, match="not finite"):
            await anext(stream)

    asyncio.run(main())
