"""Work that may be given up, on threads that nothing waits for."""

import asyncio
import threading
from collections.abc import Callable, MutableMapping
from concurrent.futures import Future, thread
from functools import cache
from typing import TypeVar

T = TypeVar("T")


async def in_background(work: Callable[[], T]) -> T:
    """What `work` returns, computed on a thread. Once cancelled, neither the caller nor the interpreter's end waits."""
    done: Future[T] = Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="sirocco-background", daemon=True).start()
    try:
        return await asyncio.wrap_future(done)
    except asyncio.CancelledError:
        _leave_daemons_at_exit()
        raise


@cache
def _leave_daemons_at_exit() -> None:
    """Let the interpreter end without the thread pools that the given-up work has opened, or will open.

    Their threads are daemons, as the one that started them; but the interpreter joins a pool's threads even so, and a
    download's would go through all files that are left. There is no public way out of that: where the private one is
    gone, the interpreter waits.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(_forget_daemons)


def _forget_daemons() -> None:
    pools: MutableMapping[threading.Thread, object] = getattr(thread, "_threads_queues", {})
    for pooled in list(pools):
        if pooled.daemon:
            pools.pop(pooled, None)
