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
            await _stream(service, exchange, request, streams, echoes, answer, params.n)
            return
        meter = service.metrics.request()
        results = await asyncio.gather(*(stream.result() for stream in streams))
        for i, (result, echo) in enumerate(zip(results, echoes, strict=True)):
            meter.finish(result.choices)
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
    service: Service,
    exchange: Exchange,
    request: CompletionRequest,
    streams: Sequence["RequestStream"],
    echoes: list[str],
    answer: Completion,
    n: int,
) -> None:
    include_usage = request.stream_options is not None and request.stream_options.include_usage is True
    if include_usage:
        answer.usage = None
    meters = [service.metrics.request() for _ in streams]
    legacy: dict[int, LegacyLogprobs] = {}
    begun: set[int] = set()
    prompt: CompletionLogprobs | None = None  # of an echo, until its first chunk
    usages: list[Usage] = []
    async with EventStream(exchange) as out:
        async for i, event in _merge(streams):
            meters[i].observe(event)
            index = i * n + event.index
            text = event.text
            if index not in begun:
                begun.add(index)
                legacy[index] = LegacyLogprobs(service.engine.tokenizer)
                text = echoes[i] + text
                echoed = streams[i].prompt_logprobs
                if echoed is None:
                    legacy[index].skip(echoes[i])
                else:
                    prompt = legacy[index].add_prompt(streams[i].prompt_token_ids, echoed)
            logprobs = legacy[index].add(event.logprobs) if event.logprobs else None
            if prompt is not None:
                logprobs, prompt = prompt if logprobs is None else join(prompt, logprobs), None
            if text or logprobs is not None or event.finish_reason is not None:
                answer.choices = [CompletionChoice(index, text, logprobs, event.finish_reason)]
                await out.send(answer)
            if event.usage is not None:
                usages.append(event.usage)
        if include_usage:
            answer.choices = []
            answer.usage = usage_body(usages)
            await out.send(answer)
        await out.close()


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
