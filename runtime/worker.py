"""The engine process: `python -m sirocco.runtime.worker FD`, where FD is its end of a private socket pair.

It reads `EngineOptions`, answers `EngineInfo` or `LoadFailed`, then takes commands and sends one `Outputs` frame a
step. It ends when the other side closes the socket or dies.
"""

import ctypes
import logging
import signal
import socket
import sys
import threading
from queue import SimpleQueue

import msgspec

from sirocco.runtime.core import run_engine
from sirocco.runtime.errors import NotEnoughMemoryError, SiroccoError
from sirocco.runtime.host import prepare_process
from sirocco.runtime.wire import Command, EngineOptions, FrameReader, LoadFailed, Outputs, frame

_PR_SET_PDEATHSIG = 1
_RECEIVE_BYTES = 1 << 18


def main() -> None:
    """Serve one client until it is gone."""
    _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    connection = socket.socket(fileno=int(sys.argv[1]))
    reader = FrameReader()
    bodies: list[bytes] = []
    while not bodies:
        if not (data := connection.recv(_RECEIVE_BYTES)):
            return
        bodies = reader.feed(data)
    options = msgspec.msgpack.decode(bodies.pop(0), type=EngineOptions)
    prepare_process()
    try:
        from sirocco.runtime.build import build_engine  # imports torch: the socket is served first

        core, info = build_engine(options)
    except SiroccoError as error:
        connection.sendall(frame(LoadFailed(str(error), for_now=isinstance(error, NotEnoughMemoryError))))
        return
    except MemoryError:
        connection.sendall(frame(LoadFailed("there is not enough memory to load the model", for_now=True)))
        return
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, reader, bodies, inbox), daemon=True).start()

    def deliver(outputs: Outputs) -> None:
        try:
            connection.sendall(frame(outputs))
        except OSError:
            inbox.put(None)  # the client is gone

    connection.sendall(frame(info))
    run_engine(core, inbox, deliver)


def _receive(
    connection: socket.socket, reader: FrameReader, bodies: list[bytes], inbox: "SimpleQueue[Command | None]"
) -> None:
    """Pass on what the client sends. Whatever ends this ends the engine: one that does not hear is of no use."""
    decoder = msgspec.msgpack.Decoder(Command)
    try:
        while True:
            for body in bodies:
                inbox.put(decoder.decode(body))
            if not (data := connection.recv(_RECEIVE_BYTES)):
                return
            bodies = reader.feed(data)
    except OSError:
        return  # the client is gone
    finally:
        inbox.put(None)


def _end_with_parent() -> None:
    """Leave signals to the parent, which drains first, and die with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
