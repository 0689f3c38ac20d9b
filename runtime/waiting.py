"""The queue of requests that wait for a slot."""

import heapq

from sirocco.runtime.sequence import Request

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """Requests by urgency. Those that leave before their turn, or pause, are passed over when they reach the front."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._count = 0
        self._refused: Request | None = None  # the head of the queue, when it was last tried
        self._wanted = 0

    def __len__(self) -> int:
        return self._count

    def push(self, request: Request) -> None:
        """Queue a request, unless it is in the queue."""
        if not request.queued:
            request.queued = True
            heapq.heappush(self._heap, (request.urgency, request))
            self._count += 1

    def first(self) -> Request | None:
        """The most urgent request that could start now."""
        while self._heap:
            request = self._heap[0][1]
            if not request.finished and not request.paused:
                return request
            heapq.heappop(self._heap)
            self.leave(request)
        return None

    def pop(self) -> Request:
        """Take out what `first` gave."""
        _, request = heapq.heappop(self._heap)
        self.leave(request)
        return request

    def refuse(self, request: Request, wanted: int) -> None:
        """Remember that the head found no room, and how much there must be before it is worth another try."""
        self._refused, self._wanted = request, wanted

    def is_refused(self, request: Request, room: int) -> bool:
        """Whether a try would be in vain."""
        return request is self._refused and room < self._wanted

    def retry(self) -> None:
        """Let the head be tried again, whatever room there is."""
        self._refused = None

    def leave(self, request: Request) -> None:
        """Count a request as gone; its entry stays a while, until it reaches the front or most are of that kind."""
        if request.queued:
            request.queued = False
            self._count -= 1
            self._refused = None
            if len(self._heap) > 2 * self._count + 1:
                self._heap = [entry for entry in self._heap if entry[1].queued]
                heapq.heapify(self._heap)
