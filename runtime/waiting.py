"""The queue of requests that wait for a slot."""

import heapq

from sirocco.runtime.sequence import Request

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """Requests by urgency. Those that leave before their turn, or pause, are passed over when they reach the front."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._count = 0

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

    def leave(self, request: Request) -> None:
        """Count a request as gone; its entry stays until it reaches the front."""
        if request.queued:
            request.queued = False
            self._count -= 1
