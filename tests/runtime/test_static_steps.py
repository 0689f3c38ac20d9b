"""A captured step asks nothing of the device and launches the same kernels whatever its rows are.

On the meta device a tensor has no values: whatever a step wanted to know of them would raise. Kernels are noted down
instead of launched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sirocco.kernels import backend
from sirocco.runtime.config import make_config
from sirocco.runtime.graphs import capturable
from sirocco.runtime.models.cache import allocate_pool
from sirocco.runtime.models.cache_spec import cache_layout
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.registry import build_spec
from sirocco.runtime.runner import ModelRunner
from sirocco.runtime.weights import loadable_modules

from .tiny_models import FAMILIES

pytest.importorskip("triton", reason="needs Linux, as Triton does")

META = torch.device("meta")
ROWS, MAX_LEN, BLOCK = 12, 256, 16
KERNELS = {
    "mixture": {"grouped_matmul_kernel", "attention_kernel"},
    "latent": {"grouped_matmul_kernel", "latent_attention_kernel"},
    "mxfp4": {"mxfp4_matmul_kernel", "attention_kernel"},
    "hybrid": {"grouped_matmul_kernel", "attention_kernel", "conv_kernel", "update_kernel"},
    "recurrent": {"conv_kernel", "update_kernel"},
}


class NoHostTensors(TorchDispatchMode):
    """Refuses operators on tensors of the host: what they hold would not be replayed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            assert not (isinstance(tensor, Tensor) and tensor.device.type == "cpu"), f"{func} is about the host"
        return out


class NoHostValues(TorchFunctionMode):
    """Refuses tensors made of the host's values, which go to the meta device without an operator."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func not in (torch.tensor, torch.as_tensor), "a tensor is made of the host's values"
        return func(*args, **(kwargs or {}))


@dataclass
class Noted:
    """A capture that notes launches, by number of rows: of the recorded step, then of each replay."""

    launched: list[Any]
    steps: dict[int, list[list[Any]]]

    def __call__(self, step: Callable[[], Tensor]) -> tuple["Replay", Tensor]:
        step()  # makes workspaces, as a capture on a device does
        hidden = self.run(step)
        return Replay(self, step), hidden

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        before = len(self.launched)
        with NoHostTensors(), NoHostValues():
            hidden = step()
        launches = self.launched[before:]
        self.steps.setdefault(len(hidden), []).append([described(launch) for launch in launches])
        return hidden


@dataclass
class Replay:
    noted: Noted
    step: Callable[[], Tensor]

    def replay(self) -> None:
        self.noted.run(self.step)


def described(launch: Any) -> tuple[Any, ...]:
    """All that a graph would record of a launch, but for addresses."""
    args = [
        (arg.shape, arg.stride(), arg.dtype, arg.storage_offset()) if isinstance(arg, Tensor) else arg
        for arg in launch.args
    ]
    return launch.name, launch.grid, args, launch.options


def meta_runner(name: str) -> ModelRunner:
    spec = build_spec(make_config(FAMILIES[name]))
    model = Decoder(spec, META)
    for _, module in loadable_modules(model):
        slots = module.slots().items()
        dtypes = {slot: weight.dtype or torch.bfloat16 for slot, weight in slots}
        module.assign({slot: torch.empty(weight.shape, dtype=dtypes[slot], device=META) for slot, weight in slots})
    layout = cache_layout(spec.caches, BLOCK, 2)
    caches = allocate_pool(spec, layout, 100, BLOCK, torch.bfloat16, META, ROWS + 2)
    return ModelRunner(model, caches, BLOCK, ROWS, MAX_LEN, META, layout.groups)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_but_contents_changes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from sirocco.kernels.triton.common import recording

    monkeypatch.setattr(backend, "FORCE_TRITON", True)
    assert capturable(META)
    runner = meta_runner(name)
    with recording() as launched, torch.inference_mode():
        noted = Noted(launched, {})
        runner.capture(noted)
        assert runner._graphs is not None
        for rows in (1, 2, 5, 9, ROWS):
            for lengths in (np.zeros(rows), np.arange(rows), np.arange(rows) * 7 % 5, np.full(rows, MAX_LEN - 1)):
                positions = lengths.astype(np.int64)
                mappings = [positions] * len(runner._tables)
                hidden = runner._graphs.replay(np.arange(rows), positions, positions * 0, mappings)
                assert hidden is not None and len(hidden) == rows
    assert set(noted.steps) == {1, 2, 3, 4, 5, 6, 7, 8, ROWS}
    for rows, steps in noted.steps.items():
        recorded, *replayed = steps
        assert KERNELS.get(name, set()) <= {launch[0] for launch in recorded}
        assert all(step == recorded for step in replayed), f"{rows} rows"
    assert len(noted.steps[ROWS]) == 9


@pytest.mark.parametrize("name", ["mixture", "recurrent"])
def test_the_definitions_would_be_found_out(name: str) -> None:
    assert not capturable(META)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        meta_runner(name).capture(Noted([], {}))
