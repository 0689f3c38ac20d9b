"""Which recurrent states are kept beside those of running requests, so that prefixes can be gone back to. Ids only.

A state cannot be cut back as a table of blocks can: it serves a prefix of exactly the length at which it was kept. The
one that was used longest ago makes room for the next.
"""


class Snapshots:
    """`num_slots` places, each free, being written by a step in flight, or known by the name of its prefix.

    Between two states of one request lie `interval` tokens at least, but for that at its prompt's last border.
    """

    def __init__(self, num_slots: int, interval: int) -> None:
        self.interval = interval
        self._free = list(range(num_slots - 1, -1, -1))
        self._known: dict[bytes, int] = {}  # the longest unused first

    @property
    def num_known(self) -> int:
        return len(self._known)

    def __contains__(self, name: bytes) -> bool:
        return name in self._known

    def use(self, name: bytes) -> int:
        """The slot of a state that is known, which is now the last to go."""
        slot = self._known[name] = self._known.pop(name)
        return slot

    def reserve(self) -> int | None:
        """A slot to write to; None while all are being written."""
        if self._free:
            return self._free.pop()
        return self._known.pop(next(iter(self._known))) if self._known else None

    def register(self, slot: int, name: bytes) -> None:
        """A reserved slot holds the state after this prefix. The first state of a prefix wins."""
        if name in self._known:
            self._free.append(slot)
        else:
            self._known[name] = slot

    def release(self, slot: int) -> None:
        """A reserved slot was not written after all."""
        self._free.append(slot)
