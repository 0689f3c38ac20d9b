"""The other end of `drivers/host.py`: one engine in a fresh process, called over its pipes."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

DRIVERS = Path(__file__).parent / "drivers"
START_TIMEOUT_S = 120.0
_SAMPLE_S = 0.1
_MESSAGE_CHARS = 200
_DIRECTORIES = re.compile(r"(?:[A-Za-z]:)?/(?:[^\s/:'\"()]+/)+")


class AbsentError(Exception):
    """The engine cannot be imported by its interpreter."""


class CallError(Exception):
    """The engine answered a command with an error; it can be asked again."""


class ChildDiedError(Exception):
    """The process ended or took too long; nothing can be asked any more."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start engines: threads for each, the cores they may use, the longest that one command may take."""

    threads: int
    timeout_s: float

    def environment(self, python: str) -> dict[str, str]:
        threads = str(self.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONSAFEPATH": "1",  # the folder of the drivers must not hide packages
        }
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))[: self.threads]
            environment["SIROCCO_BENCH_CORES"] = ",".join(map(str, cores))
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)  # it names packages for this interpreter
        return environment


class Child:
    """A process that holds one engine, through a script of `DRIVERS`. Leave the context to end it.

    Raises `AbsentError` on entering when the engine cannot be imported.
    """

    def __init__(self, python: str, driver: Path, launch: Launch) -> None:
        self._python = python
        self._driver = driver
        self._launch = launch
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        self._peak_anon_kib: int | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "Child":
        try:
            self._process = subprocess.Popen(
                [self._python, str(DRIVERS / "host.py"), str(self._driver)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=self._launch.environment(self._python),
            )
        except OSError as error:
            self._stderr.close()
            raise AbsentError(f"its interpreter cannot be started: {error.strerror}") from None
        threading.Thread(target=self._watch_memory, daemon=True).start()
        try:
            hello = self._read(START_TIMEOUT_S)
            if "absent" in hello:
                raise AbsentError(shorten(hello["absent"]))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    @property
    def peak_anon_mib(self) -> float | None:
        """The most memory seen that no file stands behind; None where the system does not tell."""
        return None if self._peak_anon_kib is None else round(self._peak_anon_kib / 1024, 1)

    def call(self, name: str, *arguments: Any, timeout_s: float | None = None) -> tuple[Any, float]:
        """The value of a command and the CPU seconds it took. Raises `CallError` or `ChildDiedError`."""
        assert self._process.stdin is not None
        line = json.dumps({"call": name, "arguments": arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildDiedError(self._cause()) from None
        answer = self._read(timeout_s or self._launch.timeout_s)
        if "error" in answer:
            raise CallError(shorten(answer["error"]))
        return answer["value"], answer["cpu_s"]

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        killer = threading.Timer(timeout_s, give_up)
        killer.daemon = True
        killer.start()
        line = self._process.stdout.readline()
        killer.cancel()
        if not line:
            raise ChildDiedError(f"no answer within {timeout_s:g} s" if late.is_set() else self._cause())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _cause(self) -> str:
        """The exit code and the last line that the process left on stderr."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with code {code}" + (f": {shorten(lines[-1])}" if lines else "")

    def _watch_memory(self) -> None:
        path = f"/proc/{self._process.pid}/status"
        while not self._ended.wait(_SAMPLE_S):
            try:
                with open(path) as lines:
                    found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
            except OSError:
                return  # the process has gone, or this is not Linux
            if found:
                self._peak_anon_kib = max(self._peak_anon_kib or 0, *found)

    def _end(self) -> None:
        self._ended.set()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # a command that the process never read


def shorten(message: str) -> str:
    """One line of at most some 200 characters, without the folders of paths: results are published."""
    return _DIRECTORIES.sub("", " ".join(message.split()))[:_MESSAGE_CHARS]
