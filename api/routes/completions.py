"""`POST /v1/completions`, the legacy text interface."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from sirocco.api.http import EventStream, Exchange, encode
from sirocco.api.logprobs import LegacyLogprobs, TokenNames, join
from sirocco.api.sampling import sampling_params, usage_body
from sirocco.api.schemas.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from sirocco.api.service import FINGERPRINT, Service, check_stream_options, new_id
from sirocco.runtime.errors import RequestError
from sirocco.runtime.request import Choice, Result, SamplingParams, StreamEvent, Usage

if TYPE_CHECKING:
    from sirocco.runtime.stream import RequestStream

MAX_PROMPTS = 1024  # of one request

_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(service: Service, exchange: Exchange) -> None:
    """Continue one or several prompts. Choice `j` of prompt `i` has index `i * n + j`."""
    request = await exchange.json(_decoder)
    model = service.admit(request.model)
    prompts = prompts_of(request)
    params = completion_params(request)
    answer = Completion(new_id("cmpl-"), int(time.time()), model, [], FINGERPRINT)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exchange.watched())
        streams = [await stack.enter_async_context(await service.submit(prompt, params)) for prompt in prompts]
        echoes = [_echo(service, prompt) if request.echo else "" for prompt in prompts]
        if request.stream:
            include_usage = request.stream_options is not None and request.stream_options.include_usage is True
            writer = _ChunkWriter(answer, echoes, params.n, service.engine.tokenizer, include_usage)
            await _stream(service, exchange, streams, writer)
            return
        results = await asyncio.gather(*(stream.result() for stream in streams))
        for i, (result, echo) in enumerate(zip(results, echoes, strict=True)):
            service.metrics.request(exchange.arrived).finish(result.choices)
            answer.choices += [
                _choice(choice, i * params.n, echo, result, service.engine.tokenizer) for choice in result.choices
            ]
        answer.usage = usage_body([result.usage for result in results])
        await exchange.reply(200, encode(answer))


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a request, each a text or token ids. Raises `RequestError` for none, empty ones or a mixture."""
    prompt = request.prompt
    if isinstance(prompt, str):
        prompts: list[str | list[int]] = [prompt]
    elif all(isinstance(item, int) for item in prompt):
        prompts = [[item for item in prompt if isinstance(item, int)]]
    else:
        prompts = [item for item in prompt if not isinstance(item, int)]
        if len(prompts) != len(prompt) or len({type(item) for item in prompts}) > 1:
            raise RequestError("prompt must hold only texts, only token ids, or only lists of token ids", "prompt")
    if not all(prompts):
        raise RequestError("prompt must not be empty", "prompt")
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(f"at most {MAX_PROMPTS} prompts are allowed in one request, got {len(prompts)}", "prompt")
    return prompts


def completion_params(request: CompletionRequest) -> SamplingParams:
    """The sampling parameters of a request. Raises `RequestError` for values out of range or not supported."""
    check_stream_options(bool(request.stream), request.stream_options is not None)
    if request.suffix:
        raise RequestError("suffix is not supported", "suffix")
    if request.best_of is not None and request.best_of != (1 if request.n is None else request.n):
        raise RequestError("best_of is only supported when it equals n", "best_of")
    echoed = request.logprobs if request.echo else None
    return sampling_params(request, request.max_tokens, request.logprobs, prompt_logprobs=echoed)


def _echo(service: Service, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else service.engine.tokenizer.decode(prompt)


def _choice(choice: Choice, base: int, echo: str, result: Result, names: TokenNames) -> CompletionChoice:
    logprobs: CompletionLogprobs | None = None
    if choice.logprobs is not None:
        legacy = LegacyLogprobs(names)
        if result.prompt_logprobs is not None:
            prompt = legacy.add_prompt(result.prompt_token_ids, result.prompt_logprobs)
            logprobs = join(prompt, legacy.add(choice.logprobs))
        else:
            logprobs = legacy.add(choice.logprobs)
    return CompletionChoice(base + choice.index, echo + choice.text, logprobs, choice.finish_reason)


async def _stream(
    service: Service, exchange: Exchange, streams: Sequence["RequestStream"], writer: "_ChunkWriter"
) -> None:
    meters = [service.metrics.request(exchange.arrived) for _ in streams]
    async with EventStream(exchange) as out:
        async for i, event in _merge(streams):
            meters[i].observe(event)
            chunk = writer.chunk(i, streams[i], event)
            if chunk is not None:
                await out.send(chunk)
        if writer.include_usage:
            await out.send(writer.usage_chunk())
        await out.close()


class _ChunkWriter:
    """Makes the chunks of one streamed answer: choice `j` of prompt `i` has index `i * n + j`."""

    def __init__(
        self, answer: Completion, echoes: Sequence[str], n: int, names: TokenNames, include_usage: bool
    ) -> None:
        self.include_usage = include_usage
        self._answer = answer  # one struct for all chunks: it is encoded at once
        self._echoes = echoes
        self._n = n
        self._names = names
        self._legacy: dict[int, LegacyLogprobs] = {}  # of the choices that have begun
        self._usages: list[Usage] = []
        if include_usage:
            answer.usage = None

    def chunk(self, i: int, stream: "RequestStream", event: StreamEvent) -> Completion | None:
        """The chunk for an event of prompt `i`, or None when it brings nothing to show."""
        index = i * self._n + event.index
        text, logprobs = event.text, None
        legacy = self._legacy.get(index)
        if legacy is None:
            legacy = self._legacy[index] = LegacyLogprobs(self._names)
            text = self._echoes[i] + text
            if stream.prompt_logprobs is None:
                legacy.skip(self._echoes[i])
            else:
                logprobs = legacy.add_prompt(stream.prompt_token_ids, stream.prompt_logprobs)
        if event.logprobs:
            added = legacy.add(event.logprobs)
            logprobs = added if logprobs is None else join(logprobs, added)
        if event.usage is not None:
            self._usages.append(event.usage)
        if not text and logprobs is None and event.finish_reason is None:
            return None
        self._answer.choices = [CompletionChoice(index, text, logprobs, event.finish_reason)]
        return self._answer

    def usage_chunk(self) -> Completion:
        """The last chunk: usage of all prompts and no choices."""
        self._answer.choices = []
        self._answer.usage = usage_body(self._usages)
        return self._answer


async def _merge(streams: Sequence["RequestStream"]) -> AsyncIterator[tuple[int, StreamEvent]]:
    """The events of all streams as they come. While nobody asks for the next one, at most one a stream is taken."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, StreamEvent | Exception | None]] = asyncio.Queue(maxsize=1)

    async def pump(i: int) -> None:
        try:
            async for event in streams[i]:
                await queue.put((i, event))
            await queue.put((i, None))
        except Exception as error:
            await queue.put((i, error))  # raised by the consumer

    pumps = [asyncio.create_task(pump(i)) for i in range(len(streams))]
    try:
        running = len(pumps)
        while running:
            i, item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield i, item
    finally:
        for task in pumps:
            task.cancel()
