"""An engine that makes embeddings: requests that wait are computed together."""

import logging
from collections import deque

from sirocco.runtime.embedding import Embedder
from sirocco.runtime.errors import RequestError
from sirocco.runtime.wire import Abort, Command, Embedded, EmbedRequest, EngineRequest, EngineStats, Outputs, Pause

logger = logging.getLogger("sirocco.engine")


class EmbedCore:
    """Takes `EmbedRequest`s in order; a step embeds those at the head of the queue that ask for the same dimensions."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._queue: deque[EmbedRequest] = deque()
        self._steps = self._tokens = 0

    def apply(self, command: Command) -> None:
        match command:
            case EmbedRequest():
                self._queue.append(command)
            case Abort(id):
                self._queue = deque(request for request in self._queue if request.id != id)
            case EngineRequest() | Pause():
                raise AssertionError("the client sends nothing to generate to a model that embeds")

    def advance(self) -> tuple[bool, Outputs]:
        if not self._queue:
            return False, Outputs([], self._stats())
        requests = self._take()
        try:
            embedded = self._embed(requests)
        except Exception:  # one of them is at fault: find out which, the others must not suffer
            embedded = [self._embed_one(request) for request in requests]
        self._steps += 1
        self._tokens += sum(len(sequence) for request in requests for sequence in request.sequences)
        return True, Outputs([], self._stats(), embedded)

    def _take(self) -> list[EmbedRequest]:
        requests = [self._queue.popleft()]
        num_tokens = sum(map(len, requests[0].sequences))
        while self._queue and self._queue[0].dimensions == requests[0].dimensions:
            num_tokens += sum(map(len, self._queue[0].sequences))
            if num_tokens > self.embedder.max_tokens:
                break
            requests.append(self._queue.popleft())
        return requests

    def _embed(self, requests: list[EmbedRequest]) -> list[Embedded]:
        sequences = [sequence for request in requests for sequence in request.sequences]
        vectors = iter(self.embedder.embed(sequences, requests[0].dimensions).numpy().astype("<f4", copy=False))
        return [Embedded(request.id, [next(vectors).tobytes() for _ in request.sequences]) for request in requests]

    def _embed_one(self, request: EmbedRequest) -> Embedded:
        try:
            return self._embed([request])[0]
        except RequestError as error:
            return Embedded(request.id, [], error.message, error.param or "input", error.code)
        except Exception as error:  # whatever the device raised, it ends this request and no other
            logger.error("embedding %d sequences failed", len(request.sequences), exc_info=error)
            return Embedded(request.id, [], "the engine failed while computing this request")

    def _stats(self) -> EngineStats:
        return EngineStats(waiting=len(self._queue), steps=self._steps, prompt_tokens=self._tokens)
