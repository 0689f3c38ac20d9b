"""The engine process's own side of the wire."""

import contextlib
import socket
from queue import SimpleQueue

import msgspec
import pytest

from sirocco.runtime.wire import Abort, Command, FrameReader, frame
from sirocco.runtime.worker import _receive


@pytest.mark.parametrize("bad", [frame(["add", 1, [2.5], [4]]), b"\xff\xff\xff\xff"], ids=["command", "frame"])
def test_what_cannot_be_read_ends_the_engine(bad: bytes) -> None:
    """An engine that goes on without hearing would leave everybody waiting."""
    ours, theirs = socket.socketpair()
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    with ours, theirs:
        ours.sendall(frame(Abort(7)) + bad)
        with contextlib.suppress(msgspec.ValidationError, ValueError):
            _receive(theirs, FrameReader(), [], inbox)
        received = [inbox.get(block=False) for _ in range(inbox.qsize())]
    assert received[-1] is None
