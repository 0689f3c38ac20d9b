"""The one way to an engine, whether it runs on a thread of this process or in a process of its own.

Nothing here imports torch: the API process uses this module.
"""

import asyncio
import itertools
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, Protocol

from sirocco.runtime.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    ContextLengthError,
    EngineUnavailableError,
    GenerationError,
    OverloadedError,
    RequestError,
    SiroccoError,
)
from sirocco.runtime.resolve import checked_ids
from sirocco.runtime.wire import (
    Abort,
    Command,
    Embedded,
    EmbedRequest,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Outputs,
    Pause,
    SequenceOutput,
)

_MAX_DIMENSIONS = 2**31 - 1

EngineState = Literal["starting", "ready", "restarting", "failed", "closed"]


class Sink(Protocol):
    """Where the outputs of one request go. Called on the event loop's thread, in order."""

    def push(self, output: SequenceOutput) -> None:
        """New tokens of one choice."""

    def fail(self, error: SiroccoError) -> None:
        """The request ended with an error; nothing follows."""


class EngineClient(ABC):
    """Token ids in, token ids out. All methods are called on the thread of the event loop that called `start`.

    A client is the only one its engine has, so it knows how many requests are inside and refuses the next one itself.
    """

    def __init__(self) -> None:
        self.state: EngineState = "starting"
        self.state_reason = "the model is being loaded"
        self.stats = EngineStats()
        self._info: EngineInfo | None = None
        self._ids = itertools.count(1)
        self._open: dict[int, tuple[EngineRequest, Sink, set[int]]] = {}  # with the choices that still run
        self._embeds: dict[int, tuple[EmbedRequest, asyncio.Future[list[bytes]]]] = {}

    @abstractmethod
    async def start(self, folder: Path | None = None) -> EngineInfo:
        """Load the model, from `folder` where it has been found already, and return when requests are accepted.

        Raises `ModelLoadError`.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the engine; open requests fail with `EngineUnavailableError`."""

    @abstractmethod
    def _send(self, command: Command) -> None: ...

    @property
    def info(self) -> EngineInfo:
        """Limits of the engine. Known from the first `start` on."""
        if self._info is None:
            raise EngineUnavailableError(self.state_reason)
        return self._info

    @property
    def num_open(self) -> int:
        """Requests inside the engine."""
        return len(self._open) + len(self._embeds)

    def next_id(self) -> int:
        """A request id never used before with this client."""
        return next(self._ids)

    def add(self, request: EngineRequest, sink: Sink) -> None:
        """Hand over a request. Raises `OverloadedError` when the queue is full, `EngineUnavailableError` when not
        ready.
        """
        self._admit("generate")
        self._send(request)
        self._open[request.id] = (request, sink, set(range(request.n)))

    async def embed(self, sequences: list[list[int]], dimensions: int | None = None) -> list[bytes]:
        """Vectors of token sequences, each as little-endian float32. Cancelling takes the request back.

        Raises as `add` does, and `RequestError` for sequences or dimensions that the model does not take.
        """
        self._admit("embed")
        _check_dimensions(dimensions)
        sequences = [checked_ids(sequence, self.info.vocab_size, "input") for sequence in sequences]
        request = EmbedRequest(self.next_id(), sequences, dimensions)
        done: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._send(request)
        self._embeds[request.id] = (request, done)
        try:
            return await done
        finally:
            if self._embeds.pop(request.id, None) is not None and self.state == "ready":
                self._send(Abort(request.id))

    def _admit(self, kind: Literal["generate", "embed"]) -> None:
        """Refuse a request that this engine cannot take, now or ever."""
        if self.state != "ready":
            raise EngineUnavailableError(self.state_reason)
        if self.info.kind != kind:
            makes = "embeddings and generates no text" if kind == "generate" else "text and no embeddings"
            raise RequestError(f"the model {self.info.model!r} makes {makes}", "model")
        limit = self.info.max_num_seqs + self.info.max_waiting
        if self.num_open >= limit:
            raise OverloadedError(
                f"{self.num_open} requests are waiting or running, which is the limit; try again later"
            )

    def abort(self, id: int, index: int | None = None) -> None:
        """Stop a request (or one choice). Its sink hears nothing more of it; unknown and finished ids are ignored."""
        entry = self._open.get(id)
        if entry is None:
            return
        running = entry[2]
        running.difference_update(running.copy() if index is None else {index})
        if not running:
            del self._open[id]
        if self.state == "ready":
            self._send(Abort(id, index))

    def pause(self, id: int, paused: bool) -> None:
        """Stop or resume scheduling a request."""
        if id in self._open and self.state == "ready":
            self._send(Pause(id, paused))

    def _deliver(self, outputs: Outputs) -> None:
        """Hand a step's outputs to their sinks; those of aborted requests are dropped."""
        self.stats = outputs.stats
        for embedded in outputs.embedded:
            asked = self._embeds.pop(embedded.id, None)
            if asked is not None and not asked[1].done():
                _settle(asked[1], embedded)
        for output in outputs.outputs:
            entry = self._open.get(output.id)
            if entry is None or output.index not in entry[2]:
                continue
            if output.finish_reason is not None:
                entry[2].discard(output.index)
                if not entry[2]:
                    del self._open[output.id]
            entry[1].push(output)

    def _fail_all(self, error: SiroccoError) -> list[EngineRequest | EmbedRequest]:
        """End every open request with an error; returns the requests."""
        entries, self._open = list(self._open.values()), {}
        for _, sink, _ in entries:
            sink.fail(error)
        embeds, self._embeds = list(self._embeds.values()), {}
        for _, done in embeds:
            if not done.done():
                done.set_exception(error)
        return [*(entry[0] for entry in entries), *(request for request, _ in embeds)]


def _check_dimensions(dimensions: int | None) -> None:
    """Which numbers a model offers is its own affair; this is about what can be sent to it."""
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= _MAX_DIMENSIONS):
        raise RequestError(f"dimensions must be an integer between 1 and {_MAX_DIMENSIONS}", "dimensions")


def _settle(done: "asyncio.Future[list[bytes]]", embedded: Embedded) -> None:
    if embedded.error is None:
        done.set_result(embedded.vectors)
    elif embedded.code == CONTEXT_LENGTH_EXCEEDED:
        done.set_exception(ContextLengthError(embedded.error, embedded.param))
    elif embedded.param is not None:
        done.set_exception(RequestError(embedded.error, embedded.param))
    else:
        done.set_exception(GenerationError(embedded.error))
