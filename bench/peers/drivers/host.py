"""The process of one engine: `python host.py SCRIPT`, commands in and replies out as lines of JSON.

It uses the standard library and the engine alone, since the interpreter may be one that never heard of Sirocco. The
script is a driver. One that computes defines `version() -> str` and

    class Model:
        def __init__(self, spec): ...                  # spec: Spec; loads, ready for the first request
        def generate(self, prompts, count) -> Reply    # greedy, `count` tokens for each prompt, handed over together

and one that makes a file for an engine defines `prepare(spec) -> None`, to be called again at no cost. An engine that
cannot be imported fails while the script runs, which is answered with "absent".
"""

import json
import os
import resource
import runpy
import sys
import time
from typing import Any, TextIO, TypedDict


class Spec(TypedDict):
    """What to load: a model folder, how the weights are held, and room for that many sequences of that many tokens."""

    folder: str
    variant: str
    threads: int
    max_streams: int
    max_tokens: int  # of prompt and generation, over all sequences that run at once


class PromptDict(TypedDict):
    ids: list[int]
    text: str


class Reply(TypedDict):
    """Seconds since the prompts were handed over, when every sequence had its first token and when all ended; the
    number of tokens that each got, and the ids of the first one's where the engine tells.
    """

    first_s: float
    total_s: float
    counts: list[int]
    ids: list[int]


class Host:
    """Answers commands with the driver's functions."""

    def __init__(self, driver: dict[str, Any]) -> None:
        self._driver = driver
        self._model: Any = None

    def version(self) -> str:
        return str(self._driver["version"]())

    def prepare(self, spec: Spec) -> None:
        self._driver["prepare"](spec)

    def load(self, spec: Spec) -> float:
        """Seconds that loading took."""
        started = time.perf_counter()
        self._model = self._driver["Model"](spec)
        return time.perf_counter() - started

    def generate(self, prompts: list[PromptDict], count: int) -> Reply:
        reply: Reply = self._model.generate(prompts, count)
        if reply["counts"] != [count] * len(prompts):
            raise RuntimeError(f"asked for {count} tokens of each sequence, got {reply['counts']}")
        return reply

    def rates(self) -> dict[str, float]:
        """What the machine can do; only the driver that measures it answers."""
        rates: dict[str, float] = self._model.rates()
        return rates

    def peak_rss_mib(self) -> float:
        """The most memory this process has held at once, pages of mapped files included."""
        try:
            with open("/proc/self/status") as lines:
                return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
        except (OSError, StopIteration):
            pass  # not Linux, where getrusage would count what the parent held when it started this process
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    replies = _take_stdout()
    if cores := os.environ.get("SIROCCO_BENCH_CORES"):
        os.sched_setaffinity(0, map(int, cores.split(",")))  # before anything starts a thread
    try:
        driver = runpy.run_path(sys.argv[1])
    except ImportError as error:
        _send(replies, {"absent": str(error)})
        return
    _send(replies, {"ready": True})
    host = Host(driver)
    for line in sys.stdin:
        command = json.loads(line)
        cpu = time.process_time()
        try:
            answer = {"value": getattr(host, command["call"])(*command["arguments"])}
        except Exception as error:  # whatever an engine raises is its answer to this one command
            answer = {"error": f"{type(error).__name__}: {error}"}
        _send(replies, answer | {"cpu_s": time.process_time() - cpu})
    # Engines leave threads and objects that do not always end in peace; nothing of theirs is needed any more.
    os._exit(0)


def _take_stdout() -> TextIO:
    """Keep stdout for replies; what engines print there goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
