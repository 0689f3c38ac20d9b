"""One request as its caller sees it: engine outputs in, stream events out, with text and stop strings."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from sirocco.runtime.client import EngineClient
from sirocco.runtime.errors import GenerationError, RequestCancelledError, SiroccoError
from sirocco.runtime.request import Choice, FinishReason, Result, SamplingParams, StreamEvent, TokenLogprob, Usage
from sirocco.runtime.text.detokenize import Detokenizer, StopChecker
from sirocco.runtime.text.tools import FirstCall, ToolParserFactory
from sirocco.runtime.wire import EngineRequest, SequenceOutput

MAX_UNREAD_TOKENS = 256  # of a request: with more than these waiting for the reader it is paused


class _ChoiceState:
    """What one choice has become so far."""

    __slots__ = ("detokenizer", "finished", "num_tokens", "stops", "unread")

    def __init__(self, detokenizer: Detokenizer, stops: StopChecker | FirstCall | None) -> None:
        self.detokenizer = detokenizer
        self.stops = stops
        self.unread: list[SequenceOutput] = []
        self.num_tokens = 0
        self.finished = False


def _text_end(stops: Sequence[str], first_call: ToolParserFactory | None) -> StopChecker | FirstCall | None:
    """What watches a choice's text for its end, where there is anything to watch for."""
    if first_call is not None:
        return FirstCall(first_call(), StopChecker(stops))
    return StopChecker(stops) if stops else None


class RequestStream:
    """An async iterator of `StreamEvent`. Ending it early (`cancel`, `async with`) stops the request in the engine.

    Everything that waits for the reader is joined into one event a choice, and past `MAX_UNREAD_TOKENS` the request is
    paused until it is read. With `first_call` a choice ends behind its first tool call, as that parser reads it.
    """

    def __init__(
        self,
        client: EngineClient,
        request: EngineRequest,
        params: SamplingParams,
        detokenizer: Callable[[], Detokenizer],
        first_call: ToolParserFactory | None = None,
    ) -> None:
        self.prompt_token_ids = request.prompt_token_ids
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.cached_tokens = 0
        self._client = client
        self._id = request.id
        self._choices = [
            _ChoiceState(detokenizer(), _text_end(params.stop_strings, first_call)) for _ in range(request.n)
        ]
        self._num_running = request.n
        self._unread_choices: deque[int] = deque()  # in the order in which their first unread outputs came
        # Choices that are ahead of the first one, whose first output tells the prompt's log probabilities.
        self._ahead: list[int] | None = None if params.prompt_logprobs is None else []
        self._num_unread = 0
        self._paused = False
        self._closed = False
        self._only_whole = False  # nobody reads before the end
        self._error: SiroccoError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # The sink's side, called by the client.

    def push(self, output: SequenceOutput) -> None:
        unread = self._choices[output.index].unread
        if not unread:
            if self._ahead is None or output.index == 0:
                self._unread_choices.append(output.index)
            else:
                self._ahead.append(output.index)
        if output.index == 0 and self._ahead is not None:
            self._unread_choices += self._ahead
            self._ahead = None
        unread.append(output)
        self._num_unread += len(output.token_ids)
        if output.finish_reason is None:
            if self._only_whole:
                return
            if self._num_unread > MAX_UNREAD_TOKENS and not self._paused:
                self._paused = True
                self._client.pause(self._id, True)
        self._wake()

    def fail(self, error: SiroccoError) -> None:
        self._error = error
        self._wake()

    # The reader's side.

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> StreamEvent:
        """The next event. Raises what ended the request early."""
        while True:
            while self._unread_choices:
                event = self._next_event()
                if event is not None:
                    return event
            if self._num_running == 0:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            if self._closed:
                raise RequestCancelledError("the request was cancelled")
            await self._wait()

    def cancel(self) -> None:
        """Stop the request; harmless when it has ended."""
        if not self._closed:
            self._closed = True
            self._unread_choices.clear()
            self._client.abort(self._id)
            self._wake()

    async def __aenter__(self) -> "RequestStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def result(self) -> Result:
        """Everything, once it is there. Stops the request when the caller is cancelled."""
        self._only_whole = all(choice.stops is None for choice in self._choices)
        texts: list[list[str]] = [[] for _ in self._choices]
        token_ids: list[list[int]] = [[] for _ in self._choices]
        logprobs: list[list[TokenLogprob]] = [[] for _ in self._choices]
        reasons: list[FinishReason] = ["abort"] * len(self._choices)
        usage = Usage(len(self.prompt_token_ids), 0, 0)
        async with self:
            async for event in self:
                texts[event.index].append(event.text)
                token_ids[event.index] += event.token_ids
                logprobs[event.index] += event.logprobs or ()
                reasons[event.index] = event.finish_reason or reasons[event.index]
                usage = event.usage or usage
        choices = [
            Choice(index, "".join(texts[index]), token_ids[index], reasons[index], logprobs[index] or None)
            for index in range(len(self._choices))
        ]
        return Result(choices, self.prompt_token_ids, usage, self.prompt_logprobs)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._paused:
            self._paused = False
            self._client.pause(self._id, False)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _next_event(self) -> StreamEvent | None:
        """Join what is unread of the first choice in line; None when it all belongs to a choice that has ended."""
        index = self._unread_choices.popleft()
        choice = self._choices[index]
        outputs, choice.unread = choice.unread, []
        first, last = outputs[0], outputs[-1]
        self._take_prompt_facts(first)
        ids, logprobs = first.token_ids, first.logprobs
        if last is not first:
            ids = [token_id for output in outputs for token_id in output.token_ids]
            logprobs = logprobs and [entry for output in outputs for entry in output.logprobs or ()]
        self._num_unread -= len(ids)
        if choice.finished:
            return None
        if last.finish_reason == "error":
            self.cancel()
            raise GenerationError(last.error or "the engine failed while computing this request")
        return self._advance(choice, index, ids, logprobs, last.finish_reason)

    def _take_prompt_facts(self, output: SequenceOutput) -> None:
        if output.index == 0 and output.cached_tokens:
            self.cached_tokens = output.cached_tokens
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs

    def _advance(
        self,
        choice: _ChoiceState,
        index: int,
        ids: list[int],
        logprobs: list[TokenLogprob] | None,
        reason: FinishReason | None,
    ) -> StreamEvent:
        shown = ids[:-1] if reason == "stop" else ids  # the token that ended it is no text
        if choice.stops is None:
            text = choice.detokenizer.push(shown)
            if reason is not None:
                text += choice.detokenizer.finish()
        else:
            text, num_used = self._check_stops(choice, choice.stops, shown, reason is not None)
            if num_used is not None:
                ids, reason = ids[:num_used], "stop"
                logprobs = logprobs and logprobs[:num_used]
                self._client.abort(self._id, index)
        choice.num_tokens += len(ids)
        if reason is None:
            return StreamEvent(index, text, ids, logprobs)
        choice.finished = True
        self._num_running -= 1
        return StreamEvent(index, text, ids, logprobs, reason, None if self._num_running else self._usage())

    def _check_stops(
        self, choice: _ChoiceState, stops: StopChecker | FirstCall, ids: list[int], last: bool
    ) -> tuple[str, int | None]:
        """Text up to its end, token by token, and the number of tokens used where it ended before its tokens."""
        text = ""
        for number, token_id in enumerate(ids, 1):
            piece, stopped = stops.push(choice.detokenizer.push((token_id,)))
            text += piece
            if stopped:
                return text, number
        if last:
            piece, stopped = stops.push(choice.detokenizer.finish())
            text += piece
            if stopped:
                return text, len(ids)
            text += stops.finish()
            if stops.ended:
                return text, len(ids)
        return text, None

    def _usage(self) -> Usage:
        completion = sum(choice.num_tokens for choice in self._choices)
        return Usage(len(self.prompt_token_ids), self.cached_tokens, completion)
