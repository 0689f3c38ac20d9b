"""An engine that makes embeddings: sequences that wait are computed together, a batch at a time."""

import logging
from collections import deque
from dataclasses import dataclass, field

from sirocco.runtime.embedding import Embedder
from sirocco.runtime.errors import RequestError
from sirocco.runtime.wire import Abort, Command, Embedded, EmbedRequest, EngineRequest, EngineStats, Outputs, Pause

logger = logging.getLogger("sirocco.engine")


@dataclass(slots=True, eq=False)
class _Job:
    """A request and what there is of its answer."""

    request: EmbedRequest
    missing: deque[int]  # numbers of the sequences that have no vector yet, the short ones first
    vectors: dict[int, bytes] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.vectors.values()))

    def answer(self) -> Embedded:
        return Embedded(self.request.id, [self.vectors[number] for number in range(len(self.vectors))])


Batch = list[tuple[_Job, list[int]]]  # of each request, which of its sequences
ANSWER_BYTES = 64 << 20  # of vectors, that a step hands over at once unless one request has more


class EmbedCore:
    """Takes `EmbedRequest`s; a step embeds one batch, of all requests in line that ask for the same dimensions.

    A request that needs more than one batch goes back behind the others after each, and can be aborted between them;
    one that a batch has no room for is the first of the next.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._jobs: deque[_Job] = deque()
        self._refused: list[Embedded] = []
        self._steps = self._tokens = 0

    def apply(self, command: Command) -> None:
        match command:
            case EmbedRequest():
                self._add(command)
            case Abort(id):
                self._jobs = deque(job for job in self._jobs if job.request.id != id)
            case EngineRequest() | Pause():
                raise AssertionError("the client sends nothing to generate to a model that embeds")

    def advance(self) -> tuple[bool, Outputs]:
        if not self._jobs and not self._refused:
            return False, Outputs([], self._stats())
        failed = self._compute(batch) if (batch := self._next_batch()) else []
        done = self._done()
        for job in done:
            self._jobs.remove(job)
        refused, self._refused = self._refused, []
        return True, Outputs([], self._stats(), [job.answer() for job in done] + failed + refused)

    def _add(self, request: EmbedRequest) -> None:
        try:
            self.embedder.check(request.sequences, request.dimensions)
        except RequestError as error:
            self._refused.append(Embedded(request.id, [], error.message, error.param or "input", error.code))
            return
        lengths = [len(sequence) for sequence in request.sequences]
        self._jobs.append(_Job(request, deque(sorted(range(len(lengths)), key=lengths.__getitem__))))

    def _next_batch(self) -> Batch:
        """As many sequences as are computed at once, at least one where any is missing.

        A request that got some of its vectors and has more left goes to the end.
        """
        batch: Batch = []
        room = self.embedder.max_tokens
        unfinished = [job for job in self._jobs if job.missing]
        for job in unfinished:
            if job.request.dimensions != unfinished[0].request.dimensions:
                break
            numbers: list[int] = []
            while job.missing:
                length = len(job.request.sequences[job.missing[0]])
                if length > room and (numbers or batch):
                    break
                numbers.append(job.missing.popleft())
                room -= length
            if numbers:
                batch.append((job, numbers))
            if job.missing:
                if numbers:
                    self._jobs.remove(job)
                    self._jobs.append(job)
                break
        return batch

    def _done(self) -> list[_Job]:
        """Requests whose vectors are all there, as many as are handed over at once."""
        done: list[_Job] = []
        room = ANSWER_BYTES
        for job in self._jobs:
            if not job.missing and (job.num_bytes <= room or not done):
                done.append(job)
                room -= job.num_bytes
        return done

    def _compute(self, batch: Batch) -> list[Embedded]:
        """Embed a batch; returns what became of requests that could not be."""
        self._steps += 1
        self._tokens += sum(len(job.request.sequences[number]) for job, numbers in batch for number in numbers)
        try:
            self._embed(batch)
            return []
        except Exception:  # one of them is at fault: find out which, the others must not suffer
            return [failed for job, numbers in batch if (failed := self._embed_alone(job, numbers)) is not None]

    def _embed_alone(self, job: _Job, numbers: list[int]) -> Embedded | None:
        try:
            self._embed([(job, numbers)])
            return None
        except Exception as error:  # whatever the device raised, it ends this request and no other
            logger.error("embedding %d sequences failed", len(numbers), exc_info=error)
            self.embedder.check_device()
            self._jobs.remove(job)
            return Embedded(job.request.id, [], "the engine failed while computing this request")

    def _embed(self, batch: Batch) -> None:
        sequences = [job.request.sequences[number] for job, numbers in batch for number in numbers]
        dimensions = batch[0][0].request.dimensions
        vectors = iter(self.embedder.embed(sequences, dimensions).numpy().astype("<f4", copy=False))
        for job, numbers in batch:
            for number in numbers:
                job.vectors[number] = next(vectors).tobytes()

    def _stats(self) -> EngineStats:
        return EngineStats(waiting=len(self._jobs), steps=self._steps, prompt_tokens=self._tokens)
