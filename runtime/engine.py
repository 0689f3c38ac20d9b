"""`Engine`: the same verbs without asyncio."""

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar, overload

from sirocco.runtime.async_engine import AsyncEngine, Message, Prompt
from sirocco.runtime.errors import EngineUnavailableError
from sirocco.runtime.request import Result, SamplingParams, StreamEvent

T = TypeVar("T")


class Engine:
    """A model in this process.

    `model` is a folder, a hub id or "demo". `dtype` and `device` are names or "auto". `kv_memory` bounds the cache in
    bytes, `chunk_size` the tokens of a prompt that are computed in one step. `batch_invariant` makes results bitwise
    independent of what else is computed beside a request. Further options, by keyword: `arch` forces an architecture (a
    class or family name) on a model whose config.json names another; `revision`, `token_source` ("literal:TOKEN",
    "env:NAME", "path:FILE", "cache" or "none") and `offline` say how a hub id is fetched; `max_model_len` shortens the
    context, `max_waiting` bounds the queue, `chat_template` replaces the model's own, `progress` shows a bar.

    Use it with `with`, or call `close`; methods may be called from any thread. Raises `ModelLoadError` when the model
    cannot be loaded.
    """

    def __init__(
        self,
        model: str = "demo",
        dtype: str = "auto",
        device: str = "auto",
        max_num_seqs: int = 64,
        kv_memory: int | None = None,
        chunk_size: int | None = None,
        prefix_caching: bool = True,
        batch_invariant: bool = False,
        **options: Any,
    ) -> None:
        self.asynchronous = AsyncEngine(
            model, dtype, device, max_num_seqs, kv_memory, chunk_size, prefix_caching, batch_invariant, **options
        )
        self._closing = False
        self._lock = threading.RLock()  # so that nothing is given to the loop once it is being closed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sirocco-loop", daemon=True)
        self._thread.start()
        _open.add(self)
        try:
            self._run(self.asynchronous.start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the engine. Open requests and calls of other threads fail; closing twice is harmless."""
        with self._lock:
            first, self._closing = not self._closing, True
        if first:
            try:
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if first:
            self._loop.close()
            _open.discard(self)

    async def _end(self) -> None:
        try:
            await self.asynchronous.close()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompts: Sequence[int], params: SamplingParams | None = None) -> Result: ...

    @overload
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Result]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Result | list[Result]:
        """Complete one prompt, or each of a list (text or token ids); `params` of a list may be a list too."""
        return self._run(self.asynchronous.generate(prompts, params))  # type: ignore[arg-type]

    @overload
    def embed(  # type: ignore[overload-overlap]
        self, texts: str, truncate: bool = False, dimensions: int | None = None
    ) -> list[float]: ...

    @overload
    def embed(
        self, texts: Sequence[Prompt], truncate: bool = False, dimensions: int | None = None
    ) -> list[list[float]]: ...

    def embed(
        self, texts: str | Sequence[Prompt], truncate: bool = False, dimensions: int | None = None
    ) -> list[float] | list[list[float]]:
        """The vector of a text, or of each of a list (texts or token ids), by a model that makes embeddings."""
        return self._run(self.asynchronous.embed(texts, truncate, dimensions))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[StreamEvent, None, None]:
        """Complete one prompt event by event. Closing the iterator cancels the request."""
        return self._iterate(self.asynchronous.stream(prompt, params))

    def chat(
        self,
        messages: list[Message],
        /,
        params: SamplingParams | None = None,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> Result:
        """Answer a conversation in OpenAI's message format."""
        return self._run(self.asynchronous.chat(messages, params, tools, **variables))

    def stream_chat(
        self,
        messages: list[Message],
        /,
        params: SamplingParams | None = None,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> Generator[StreamEvent, None, None]:
        """Answer a conversation event by event. Closing the iterator cancels the request."""
        return self._iterate(self.asynchronous.stream_chat(messages, params, tools, **variables))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._schedule(coroutine)
        if future is None:
            coroutine.close()
            raise EngineUnavailableError("the engine was closed")
        try:
            return future.result()
        except CancelledError:
            if not self._closing:
                raise
            raise EngineUnavailableError("the engine was closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C here must stop the request there
            raise

    def _schedule(self, coroutine: Coroutine[Any, Any, T]) -> Future[T] | None:
        """Give work to the loop. None, and nothing done, from the beginning of closing on."""
        with self._lock:
            return None if self._closing else asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _iterate(self, events: AsyncGenerator[StreamEvent, None]) -> Generator[StreamEvent, None, None]:
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:  # without waiting: a forgotten iterator is finalised on any thread, the loop's own among them
            closing = _close(events)
            if self._schedule(closing) is None:
                closing.close()


_open: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads that still compute while the interpreter goes down may crash it."""
    for engine in list(_open):
        engine.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)  # their threads are the parent's


async def _next(events: AsyncGenerator[StreamEvent, None]) -> StreamEvent | None:
    return await anext(events, None)


async def _close(events: AsyncGenerator[StreamEvent, None]) -> None:
    await events.aclose()
