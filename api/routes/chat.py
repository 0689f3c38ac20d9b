"""`POST /v1/chat/completions`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from sirocco.api.http import EventStream, Exchange, encode
from sirocco.api.logprobs import TokenNames, chat_logprobs
from sirocco.api.metrics import RequestMeter
from sirocco.api.sampling import sampling_params, usage_body
from sirocco.api.schemas.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    Message,
    RequestMessage,
)
from sirocco.api.service import FINGERPRINT, Service, check_constraints, check_stream_options, new_id
from sirocco.api.tool_calls import ToolCallStream, one_call, whole_calls
from sirocco.runtime.errors import RequestError
from sirocco.runtime.request import Choice, SamplingParams, StreamEvent
from sirocco.runtime.text.chat import RESERVED_VARIABLES
from sirocco.runtime.text.tools import ToolParser

if TYPE_CHECKING:
    from sirocco.runtime.stream import RequestStream

_decoder = msgspec.json.Decoder(ChatRequest)
_RESERVED_KWARGS = RESERVED_VARIABLES | {"chat_template", "tokenize"}
_NO_THINKING = frozenset({"off", "none"})
_EFFORTS = _NO_THINKING | {"minimal", "low", "medium", "high", "xhigh"}


async def chat_completions(service: Service, exchange: Exchange) -> None:
    """Answer a conversation, whole or as a stream of chunks."""
    request = await exchange.json(_decoder)
    model = service.admit(request.model)
    params = chat_params(request)
    tools = _tools(request)
    parser = service.tool_parser() if tools else None
    first_call = parser if request.parallel_tool_calls is False else None
    if first_call is not None:
        parser = one_call(first_call)
    variables = _template_kwargs(request)
    async with exchange.watched():
        messages = await exchange.work_through(_messages, request)
        prompt = await service.render(messages, tools, variables, params.truncate_prompt)
        async with service.engine.submit(prompt, params, first_call, param="messages") as stream:
            with service.metrics.request(exchange.arrived, params.n) as meter:
                if request.stream:
                    include_usage = request.stream_options is not None and request.stream_options.include_usage is True
                    writer = _ChunkWriter(model, include_usage, service.engine.tokenizer, parser)
                    await _stream(exchange, stream, meter, writer)
                    return
                result = await stream.result()
                meter.finish(result.choices)
        completion = ChatCompletion(
            id=new_id("chatcmpl-"),
            created=int(time.time()),
            model=model,
            choices=[_choice(choice, service.engine.tokenizer, parser) for choice in result.choices],
            usage=usage_body([result.usage]),
            system_fingerprint=FINGERPRINT,
        )
        await exchange.reply(200, encode(completion))


def chat_params(request: ChatRequest) -> SamplingParams:
    """The sampling parameters of a chat request. Raises `RequestError` for values out of range or not supported yet."""
    check_stream_options(bool(request.stream), request.stream_options is not None)
    check_constraints(request)
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs is only allowed when logprobs is true", "top_logprobs")
    if not 0 <= (request.top_logprobs or 0) <= 20:
        raise RequestError(f"top_logprobs must be between 0 and 20, got {request.top_logprobs}", "top_logprobs")
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if max_tokens is not None and max_tokens < 1:
        name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        raise RequestError(f"{name} must be at least 1, got {max_tokens}", name)
    return sampling_params(request, max_tokens, logprobs=(request.top_logprobs or 0) if request.logprobs else None)


def _tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The declared tools that the model may call, as the template wants them."""
    choice = request.tool_choice
    if isinstance(choice, dict):
        raise RequestError("tool_choice that names a function is not supported yet", "tool_choice")
    if choice == "required":
        raise RequestError('tool_choice "required" is not supported yet', "tool_choice")
    if choice not in (None, "auto", "none"):
        raise RequestError('tool_choice must be "auto", "none", "required" or an object', "tool_choice")
    if choice == "none" or not request.tools:
        return None
    return [msgspec.to_builtins(tool) for tool in request.tools]


def _messages(request: ChatRequest) -> list[dict[str, Any]]:
    try:
        return [_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
    except RecursionError:
        raise RequestError("the arguments of a tool call are nested too deeply", "messages") from None


def _message(message: RequestMessage, where: str) -> dict[str, Any]:
    """A message as templates want it: absent fields left out, `content` always there."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message.content, list):
        for i, part in enumerate(message.content):
            if part.type not in ("text", "refusal"):
                raise RequestError(
                    f"content parts of type {part.type!r:.64} are not supported by this model",
                    f"{where}.content[{i}].type",
                )
            if getattr(part, part.type) is None:
                raise RequestError(f"a {part.type} part needs `{part.type}`", f"{where}.content[{i}].{part.type}")
        plain["content"] = [{"type": "text", "text": getattr(part, part.type)} for part in message.content]
    if message.tool_calls:
        plain["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    return plain


def _template_kwargs(request: ChatRequest) -> dict[str, Any]:
    kwargs = dict(request.chat_template_kwargs or {})
    for name in kwargs:
        if name in _RESERVED_KWARGS:
            raise RequestError(f"chat_template_kwargs cannot set {name!r}", "chat_template_kwargs")
    if request.enable_thinking is not None:
        kwargs["enable_thinking"] = request.enable_thinking
    if request.reasoning_effort is not None:
        effort = request.reasoning_effort.strip().lower()
        effort = "xhigh" if effort == "max" else effort
        if effort not in _EFFORTS:
            raise RequestError(f"reasoning_effort {request.reasoning_effort!r:.64} is unknown", "reasoning_effort")
        thinks = effort not in _NO_THINKING
        if kwargs.setdefault("enable_thinking", thinks) != thinks:
            raise RequestError("reasoning_effort contradicts enable_thinking", "reasoning_effort")
        kwargs["reasoning_effort"] = kwargs["reasoning_strength"] = effort
    return kwargs


def _choice(choice: Choice, names: TokenNames, parser: Callable[[], ToolParser] | None) -> ChatChoice:
    logprobs = chat_logprobs(choice.logprobs, names) if choice.logprobs is not None else None
    if parser is not None:
        content, calls = whole_calls(parser(), choice.text)
        reason: FinishReason = "tool_calls" if calls and choice.finish_reason == "stop" else choice.finish_reason
        message = Message(content or None, calls) if calls else Message(content)
        return ChatChoice(choice.index, message, reason, logprobs)
    return ChatChoice(choice.index, Message(choice.text), choice.finish_reason, logprobs)


async def _stream(exchange: Exchange, stream: "RequestStream", meter: RequestMeter, writer: "_ChunkWriter") -> None:
    async with EventStream(exchange) as out:
        async for event in stream:
            meter.observe(event)
            chunk = writer.chunk(event)
            if chunk is not None:
                await out.send(chunk)
            if event.usage is not None and writer.include_usage:
                await out.send(writer.usage_chunk(event))
        await out.close()


class _ChunkWriter:
    """Makes the chunks of one streamed answer."""

    def __init__(
        self,
        model: str,
        include_usage: bool,
        names: TokenNames,
        parser: Callable[[], ToolParser] | None,
    ) -> None:
        self.include_usage = include_usage
        self._names = names
        self._parser = parser
        self._calls: dict[int, ToolCallStream] = {}
        self._begun: set[int] = set()
        # One struct for all chunks: it is encoded at once, and only its choice changes.
        self._chunk = ChatChunk(new_id("chatcmpl-"), int(time.time()), model, [], FINGERPRINT)
        if include_usage:
            self._chunk.usage = None

    def chunk(self, event: StreamEvent) -> ChatChunk | None:
        """The chunk for an event, or None when it brings nothing to show."""
        delta = Delta()
        reason = self._fill(delta, event)
        logprobs = chat_logprobs(event.logprobs, self._names) if event.logprobs else None
        begins = event.index not in self._begun
        if begins:
            self._begun.add(event.index)
            delta.role = "assistant"
            if delta.content is UNSET and delta.tool_calls is UNSET:
                delta.content = ""
        elif delta.content is UNSET and delta.tool_calls is UNSET and reason is None and logprobs is None:
            return None
        self._chunk.choices = [ChunkChoice(event.index, delta, logprobs, reason)]
        return self._chunk

    def usage_chunk(self, event: StreamEvent) -> ChatChunk:
        """The last chunk: usage and no choices."""
        assert event.usage is not None
        self._chunk.choices = []
        self._chunk.usage = usage_body([event.usage])
        return self._chunk

    def _fill(self, delta: Delta, event: StreamEvent) -> FinishReason | None:
        """Put the event's text into the delta and return the finish reason to show."""
        if self._parser is None:
            if event.text:
                delta.content = event.text
            return event.finish_reason
        calls = self._calls.get(event.index)
        if calls is None:
            calls = self._calls[event.index] = ToolCallStream(self._parser())
        content, pieces = calls.push(event.text)
        if event.finish_reason is not None:
            tail, late = calls.finish()
            content += tail
            pieces += late
        if content:
            delta.content = content
        if pieces:
            delta.tool_calls = pieces
        if event.finish_reason == "stop" and calls.num_calls:
            return "tool_calls"
        return event.finish_reason
