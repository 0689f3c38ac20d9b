"""`POST /v1/completions`, the legacy text interface."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from sirocco.api.http import EventStream, Exchange, encode
from sirocco.api.logprobs import Echo, LegacyLogprobs, join
from sirocco.api.metrics import RequestMeter
from sirocco.api.sampling import sampling_params, usage_body
from sirocco.api.schemas.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from sirocco.api.service import FINGERPRINT, Service, check_constraints, check_stream_options, new_id
from sirocco.runtime.errors import RequestError
from sirocco.runtime.request import Choice, FinishReason, Result, SamplingParams, StreamEvent, Usage

if TYPE_CHECKING:
    from sirocco.runtime.stream import RequestStream
    from sirocco.runtime.text.tokenizer import Tokenizer

MAX_PROMPTS = 1024  # of one request

_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(service: Service, exchange: Exchange) -> None:
    """Continue one or several prompts. Choice `j` of prompt `i` has index `i * n + j`."""
    request = await exchange.json(_decoder)
    model = service.admit(request.model)
    params = completion_params(request)
    answer = Completion(new_id("cmpl-"), int(time.time()), model, [], FINGERPRINT)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exchange.watched())
        prompts = await exchange.work_through(prompts_of, request)
        sequences = await service.tokenize(prompts, params)
        streams = []
        for ids in sequences:
            streams.append(await stack.enter_async_context(service.engine.submit(ids, params)))
            await asyncio.sleep(0)  # many choices take a while, and others have their turn
        meters = [stack.enter_context(service.metrics.request(exchange.arrived, params.n)) for _ in streams]
        scoring = _scores_only(request)
        echoes = [
            _echo(prompt, len(ids), stream, service.engine.tokenizer) if request.echo else Echo()
            for prompt, ids, stream in zip(prompts, sequences, streams, strict=True)
        ]
        if request.stream:
            include_usage = request.stream_options is not None and request.stream_options.include_usage is True
            writer = _ChunkWriter(answer, echoes, params.n, service.engine.tokenizer, include_usage, scoring)
            await _stream(exchange, streams, meters, writer)
            return
        results = await asyncio.gather(*(stream.result() for stream in streams))
        if scoring:
            results = [_without_completion(result) for result in results]
        for i, (result, meter, echo) in enumerate(zip(results, meters, echoes, strict=True)):
            meter.finish(result.choices)
            answer.choices += _choices(result, i * params.n, echo, service.engine.tokenizer)
            await asyncio.sleep(0)  # as above
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
    check_constraints(request)
    if request.suffix:
        raise RequestError("suffix is not supported", "suffix")
    if request.best_of is not None and request.best_of != (1 if request.n is None else request.n):
        raise RequestError("best_of is only supported when it equals n", "best_of")
    echoed = request.logprobs if request.echo else None
    max_tokens = 1 if _scores_only(request) else request.max_tokens
    return sampling_params(request, max_tokens, request.logprobs, prompt_logprobs=echoed)


def _scores_only(request: CompletionRequest) -> bool:
    """Whether only the prompt is to come back. The engine computes one token for that, which nobody sees."""
    return bool(request.echo) and request.max_tokens == 0


def _without_completion(result: Result) -> Result:
    return replace(
        result,
        choices=[
            replace(
                choice,
                text="",
                token_ids=[],
                logprobs=None if choice.logprobs is None else [],
                finish_reason="length",
            )
            for choice in result.choices
        ],
        usage=replace(result.usage, completion_tokens=0),
    )


def _without_text(event: StreamEvent) -> StreamEvent:
    usage = None if event.usage is None else replace(event.usage, completion_tokens=0)
    reason: FinishReason | None = None if event.finish_reason is None else "length"
    return replace(event, text="", token_ids=[], logprobs=None, finish_reason=reason, usage=usage)


def _echo(prompt: str | list[int], num_tokens: int, stream: "RequestStream", tokenizer: "Tokenizer") -> Echo:
    """A text as it was sent unless it was truncated, token ids decoded."""
    skip_special_tokens = not isinstance(prompt, str)
    if isinstance(prompt, str) and len(stream.prompt_token_ids) == num_tokens:
        return Echo(prompt, skip_special_tokens)
    return Echo(tokenizer.decode(stream.prompt_token_ids, skip_special_tokens), skip_special_tokens)


def _choices(result: Result, base: int, echo: Echo, tokenizer: "Tokenizer") -> list[CompletionChoice]:
    prompt: CompletionLogprobs | None = None
    if result.prompt_logprobs is not None:
        prompt = LegacyLogprobs(tokenizer, echo).prompt(result.prompt_token_ids, result.prompt_logprobs)
    return [_choice(choice, base, echo, prompt, tokenizer) for choice in result.choices]


def _choice(
    choice: Choice, base: int, echo: Echo, prompt: CompletionLogprobs | None, tokenizer: "Tokenizer"
) -> CompletionChoice:
    logprobs: CompletionLogprobs | None = None
    if choice.logprobs is not None:
        logprobs = LegacyLogprobs(tokenizer, echo).add(choice.logprobs)
        if prompt is not None:
            logprobs = join(prompt, logprobs)
    return CompletionChoice(base + choice.index, echo.text + choice.text, logprobs, choice.finish_reason)


async def _stream(
    exchange: Exchange, streams: Sequence["RequestStream"], meters: Sequence[RequestMeter], writer: "_ChunkWriter"
) -> None:
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
        self,
        answer: Completion,
        echoes: Sequence[Echo],
        n: int,
        tokenizer: "Tokenizer",
        include_usage: bool,
        scoring: bool = False,
    ) -> None:
        self.include_usage = include_usage
        self._answer = answer  # one struct for all chunks: it is encoded at once
        self._echoes = echoes
        self._n = n
        self._tokenizer = tokenizer
        self._scoring = scoring
        self._legacy: dict[int, LegacyLogprobs] = {}  # of the choices that have begun
        self._prompts: dict[int, CompletionLogprobs] = {}
        self._usages: list[Usage] = []
        if include_usage:
            answer.usage = None

    def chunk(self, i: int, stream: "RequestStream", event: StreamEvent) -> Completion | None:
        """The chunk for an event of prompt `i`, or None when it brings nothing to show."""
        if self._scoring:
            event = _without_text(event)
        index = i * self._n + event.index
        text, logprobs = event.text, None
        legacy = self._legacy.get(index)
        if legacy is None:
            legacy = self._legacy[index] = LegacyLogprobs(self._tokenizer, self._echoes[i])
            text = self._echoes[i].text + text
            if stream.prompt_logprobs is not None:
                if i not in self._prompts:
                    self._prompts[i] = legacy.prompt(stream.prompt_token_ids, stream.prompt_logprobs)
                logprobs = self._prompts[i]
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
