"""What a step that fails ends: its requests, or the engine where the device is of no use any more."""

from queue import SimpleQueue

import pytest

from sirocco.runtime.blocks import BlockGroup, BlockPool
from sirocco.runtime.core import EngineCore, run_engine
from sirocco.runtime.plan import Plan, StepResult
from sirocco.runtime.scheduler import Scheduler
from sirocco.runtime.wire import Command, EngineRequest, Outputs, Sampling

from .fakes import FakeRunner

GROUPS = [BlockGroup(4, None)]


class FailingRunner(FakeRunner):
    """Fails its first step; afterwards the device is lost, or as good as before."""

    def __init__(self, *, lost: bool) -> None:
        super().__init__(GROUPS)
        self.lost, self.failed = lost, False

    def launch(self, plan: Plan) -> StepResult:
        if not self.failed:
            self.failed = True
            raise RuntimeError("an illegal memory access was encountered")
        return super().launch(plan)

    def check_device(self) -> None:
        if self.lost:
            raise RuntimeError("the device is lost")


def run(*, lost: bool) -> list[Outputs]:
    core = EngineCore(Scheduler(BlockPool(16), GROUPS, 2, 32, 16, None), FailingRunner(lost=lost))
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    heard: list[Outputs] = []

    def deliver(outputs: Outputs) -> None:
        heard.append(outputs)
        for output in outputs.outputs:
            if output.finish_reason == "error":
                inbox.put(EngineRequest(2, [1, 2], Sampling(max_tokens=2)))
            elif output.finish_reason is not None:
                inbox.put(None)

    inbox.put(EngineRequest(1, [1, 2, 3], Sampling(max_tokens=2)))
    run_engine(core, inbox, deliver)
    return heard


def test_a_failed_step_ends_its_requests_and_the_engine_goes_on() -> None:
    ended = [output for outputs in run(lost=False) for output in outputs.outputs if output.finish_reason]
    assert [(output.id, output.finish_reason) for output in ended] == [(1, "error"), (2, "length")]


def test_gauges_are_told_while_prompts_bring_no_tokens() -> None:
    core = EngineCore(Scheduler(BlockPool(64), GROUPS, 2, 32, 16, None), FakeRunner(GROUPS, 32))
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    heard: list[Outputs] = []

    def deliver(outputs: Outputs) -> None:
        heard.append(outputs)
        if outputs.outputs:
            inbox.put(None)

    inbox.put(EngineRequest(1, list(range(100)), Sampling(max_tokens=1)))
    run_engine(core, inbox, deliver)
    busy = [outputs.stats for outputs in heard if not outputs.outputs]
    assert [stats.running for stats in busy] == [1, 1, 1] and busy[0].blocks_used > 0


def test_an_engine_whose_device_is_lost_dies_so_that_another_can_take_its_place() -> None:
    with pytest.raises(RuntimeError, match="the device is lost"):
        run(lost=True)
