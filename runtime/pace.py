"""How many threads compute, tried again while serving: clients and the network need a processor too."""

from collections.abc import Callable
from statistics import median

_WINDOW = 16  # decode steps that are compared
_SETTLE = 2  # steps after a change that are not
_PERIOD = 400  # steps until the first trial; twice as many after each one that lost
_LONGEST = 6400
_GAIN = 0.97  # of the time of a step, below which a trial has won


class Pace:
    """Compares all threads with all but one on decode steps of one size, and keeps the faster.

    `set_threads` is called with the number to compute on. Trials take at most one step in twenty.
    """

    def __init__(self, threads: int, set_threads: Callable[[int], None]) -> None:
        self._set_threads = set_threads
        self._used, self._other = threads, threads - 1
        self._left = self._period = _PERIOD
        self._rows = 0
        self._window: list[float] = []
        self._known = 0.0  # a step's time before the trial that is on; 0 when none is

    def observe(self, rows: int, seconds: float) -> None:
        """Note a step that decoded `rows` tokens, one a request."""
        if self._other < 1:
            return
        if rows != self._rows:
            self._rows = rows
            self._window.clear()
            if self._known:  # what it would be compared with no longer holds
                self._swap()
                self._known, self._left = 0.0, self._period
            return
        self._left -= 1
        if self._left > (_WINDOW if not self._known else _WINDOW - 1):
            return
        self._window.append(seconds)
        if self._left > 0 or len(self._window) < _WINDOW:
            return
        self._decide(median(self._window))

    def _decide(self, seconds: float) -> None:
        self._window.clear()
        if not self._known:
            self._known, self._left = seconds, _WINDOW + _SETTLE
            self._swap()
            return
        if seconds < _GAIN * self._known:
            self._period = _PERIOD
        else:
            self._swap()
            self._period = min(2 * self._period, _LONGEST)
        self._known, self._left = 0.0, self._period

    def _swap(self) -> None:
        self._used, self._other = self._other, self._used
        self._set_threads(self._used)
