"""The engine proper: a scheduler and a runner, one step at a time, and the loop that drives them on whatever thread
owns the device.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import msgspec

from sirocco.runtime.errors import is_out_of_memory
from sirocco.runtime.pace import Pace
from sirocco.runtime.plan import Plan, StepResult
from sirocco.runtime.scheduler import Scheduler
from sirocco.runtime.wire import Abort, Command, EmbedRequest, EngineRequest, Outputs, Pause, SequenceOutput

logger = logging.getLogger("sirocco.engine")


class Runner(Protocol):
    """Carries out plans. `launch` does not wait for the device, `fetch` does."""

    @property
    def graph_misses(self) -> int:
        """Steps of decodes that no captured graph held."""

    def launch(self, plan: Plan) -> Any: ...

    def fetch(self, step: Any) -> StepResult: ...

    def check_device(self) -> None:
        """Raises where the device will compute nothing any more, after a step that failed."""


class Core(Protocol):
    """What the loop drives: takes commands, and advances until there is nothing to do."""

    def apply(self, command: Command) -> None: ...

    def advance(self) -> tuple[bool, Outputs]:
        """Do one piece of work. False when there is nothing to do until a command comes."""


class EngineCore:
    """Steps with up to `depth` plans in flight while the next one is made: 0 on a CPU, 1 on a GPU.

    `pace` hears how long decode steps take, on a CPU.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, depth: int = 0, pace: Pace | None = None) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.depth = depth
        self.pace = pace
        self._in_flight: deque[tuple[Plan, Any]] = deque()
        self._decoded = 0  # rows of the last plan if each had one token

    def apply(self, command: Command) -> None:
        """Take in one command from a client."""
        match command:
            case EngineRequest():
                self.scheduler.add(command)
            case Abort(id, index):
                self.scheduler.abort(id, index)
            case Pause(id, paused):
                self.scheduler.pause(id, paused)
            case EmbedRequest():
                raise AssertionError("the client sends no texts to embed to a model that generates")

    def advance(self) -> tuple[bool, Outputs]:
        started = time.perf_counter()
        busy, outputs = self.step()
        if self.pace is not None and self._decoded:
            self.pace.observe(self._decoded, time.perf_counter() - started)
        stats = self.scheduler.stats()
        if misses := self.runner.graph_misses:
            stats = msgspec.structs.replace(stats, graph_misses=misses)
        return busy, Outputs(outputs, stats)

    def step(self) -> tuple[bool, list[SequenceOutput]]:
        """Launch one plan and commit the one before it. False when there is nothing to do until a command comes."""
        plan = self.scheduler.plan()
        self._decoded = len(plan.counts) if plan and sum(plan.counts) == len(plan.counts) else 0
        outputs: list[SequenceOutput] = []
        if plan:
            try:
                self._in_flight.append((plan, self.runner.launch(plan)))
            except Exception as error:  # whatever the device raised, it ends this plan's requests and no others
                while self._in_flight:
                    outputs += self._commit()
                outputs += self._fail(plan, error)
                return True, outputs
        elif not self._in_flight:
            return False, outputs
        if not plan or len(self._in_flight) > self.depth:
            outputs += self._commit()
        return True, outputs

    def _commit(self) -> list[SequenceOutput]:
        plan, step = self._in_flight.popleft()
        try:
            result = self.runner.fetch(step)
        except Exception as error:  # as above
            return self._fail(plan, error)
        return self.scheduler.commit(plan, result)

    def _fail(self, plan: Plan, error: Exception) -> list[SequenceOutput]:
        logger.error("a step of %d rows failed", len(plan.slots), exc_info=error)
        self.runner.check_device()
        reason = "ran out of memory" if is_out_of_memory(error) else "failed"
        return self.scheduler.fail(plan, f"the engine {reason} while computing this request")


def run_engine(core: Core, inbox: "SimpleQueue[Command | None]", deliver: Callable[[Outputs], None]) -> None:
    """Step until `None` arrives: take in all commands between steps, sleep on the inbox when there is nothing to do."""
    busy = True
    while True:
        try:
            command = inbox.get(block=not busy)
            while True:
                if command is None:
                    return
                core.apply(command)
                command = inbox.get(block=False)
        except Empty:
            pass
        busy, outputs = core.advance()
        deliver(outputs)  # with its gauges, also while prompts bring no tokens and when it falls asleep
