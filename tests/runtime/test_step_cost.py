"""What a decode step costs, counted instead of timed: operators and allocations of torch, and calls on the host.

The bounds are what was counted when they were written, with little to spare: whoever exceeds one has put work on the
path of every token, and either takes it off again or says here why it belongs there.
"""

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sirocco.kernels.native import ops
from sirocco.runtime.build import BLOCK_SIZE, assemble
from sirocco.runtime.core import EngineCore
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling

SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96}


class Counting(TorchDispatchMode):
    """Operators by name, and tensors that own memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.allocations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in known:
            self.allocations += 1
        return out


def engine(layers: int, dtype: str, rows: int, sampling: dict[str, Any]) -> EngineCore:
    """An engine whose next steps decode one token for each of `rows` requests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", SHAPES["tiny"] | SMALL | {"num_hidden_layers": layers})
        loaded = random_model("tiny", dtype, "cpu")
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=64, kv_memory=32 << 20), "test")
    settings = Sampling(**({"max_tokens": 200, "temperature": 0.0} | sampling))
    for id in range(rows):
        core.apply(EngineRequest(id, [1 + (id * 7 + i) % 500 for i in range(20)], settings))
    for _ in range(2 + rows // 8):  # prompts, and a step of decodes
        core.step()
    return core


def counted(core: EngineCore) -> tuple[Counter[str], int]:
    with Counting() as counting:
        core.step()
    return counting.calls, counting.allocations


@pytest.mark.parametrize(
    ("dtype", "calls", "allocations"),
    [
        pytest.param(
            "bfloat16", 0, 0, marks=pytest.mark.skipif(not ops.has_products(), reason="no C++ compiler")
        ),  # a layer is one call of our kernels, which overwrite what they are given
        ("float32", 78, 30),
    ],
)
def test_operators_of_a_layer(dtype: str, calls: int, allocations: int) -> None:
    """Two more layers, their operators and their tensors, by which one layer costs what half of the difference is."""
    few, few_tensors = counted(engine(2, dtype, 4, {}))
    more, more_tensors = counted(engine(4, dtype, 4, {}))
    assert (more.total() - few.total()) / 2 <= calls, (more - few).most_common()
    assert (more_tensors - few_tensors) / 2 <= allocations


@pytest.mark.parametrize(
    ("sampling", "calls", "growth"), [({}, 90, 0), ({"temperature": 0.8, "top_p": 0.9, "top_k": 20}, 190, 160)]
)
def test_operators_outside_the_layers(sampling: dict[str, Any], calls: int, growth: int) -> None:
    """They do not grow with the requests, but for noise being drawn in pieces that stay in the caches."""
    one, _ = counted(engine(2, "float32", 1, sampling))
    many, _ = counted(engine(2, "float32", 48, sampling))
    assert one.total() <= calls + 2 * 82, one.most_common()
    assert many.total() <= one.total() + growth, (many - one).most_common()


class NoModel(torch.nn.Module):
    """Stands in for a decoder and computes nothing."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec
        self.scores = torch.zeros(64, spec.vocab_size)

    def forward(self, token_ids: torch.Tensor, *_: Any) -> torch.Tensor:
        return self.scores[: len(token_ids), :4]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.scores[: len(hidden)]


def host_calls(core: EngineCore) -> float:
    """Python and C calls of a step, in the mean of as many as fill a block."""
    core.runner.model = NoModel(core.runner.model.spec)
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    core.step()
    sys.setprofile(note)
    try:
        for _ in range(BLOCK_SIZE):
            core.step()
    finally:
        sys.setprofile(None)
    return count / BLOCK_SIZE


@pytest.mark.parametrize(("rows", "calls"), [(1, 250), (64, 1800)])
def test_calls_on_the_host(rows: int, calls: int) -> None:
    assert host_calls(engine(2, "float32", rows, {})) <= calls


def test_waiting_requests_cost_a_step_nothing() -> None:
    core = engine(2, "float32", 64, {})  # as many as run at once
    alone = host_calls(core)
    for id in range(10_000):
        core.apply(EngineRequest(100 + id, [5, 6, 7], Sampling(max_tokens=3, temperature=0.0)))
    assert host_calls(core) <= alone + 10
