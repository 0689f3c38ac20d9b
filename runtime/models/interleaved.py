"""Experts as GPT-OSS stores them: gate and up alternate, the weights are columns of outputs or rows in MXFP4 blocks."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sirocco.kernels.backend import use_triton
from sirocco.kernels.moe import Experts, Stack
from sirocco.kernels.mxfp4 import BLOCK, Mxfp4Stack
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.linear import Weight, make_weight
from sirocco.runtime.models.spec import MoeSpec
from sirocco.runtime.weights import Loadable, Slot

PROJECTIONS = ("gate_up_proj", "down_proj")


def _stacked(matrices: Iterable[Tensor], count: int) -> Tensor:
    """`count` matrices as one tensor, taken one by one, so that they need not all be there beside it."""
    stack: Tensor | None = None
    for number, matrix in enumerate(matrices):
        if stack is None:
            stack = matrix.new_empty(count, *matrix.shape)
        stack[number] = matrix
    assert stack is not None
    return stack


class ColumnExperts(Loadable):
    """Experts whose checkpoints hold the outputs as columns, [E, C, 2 I] and [E, I, C]."""

    up: list[Weight]
    down: list[Weight]
    up_bias: Tensor
    down_bias: Tensor
    stacks: tuple[Stack, Stack] | None = None

    def __init__(self, spec: MoeSpec, width: int) -> None:
        super().__init__()
        self.num_experts = spec.num_experts
        self.sizes = {"gate_up_proj": (2 * spec.expert.hidden, width), "down_proj": (width, spec.expert.hidden)}

    def slots(self) -> dict[str, Slot]:
        return self.weight_slots() | {
            f"{name}_bias": Slot((rows,), count=self.num_experts) for name, (rows, _) in self.sizes.items()
        }

    def weight_slots(self) -> dict[str, Slot]:
        return {name: Slot((columns,), (rows,), self.num_experts) for name, (rows, columns) in self.sizes.items()}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        up_bias, down_bias = (tensors.pop(f"{name}_bias").view(self.num_experts, -1) for name in PROJECTIONS)
        self.up_bias, self.down_bias = _apart(up_bias, dim=1), down_bias
        self.assign_weights(tensors)

    def assign_weights(self, tensors: dict[str, Tensor]) -> None:
        up, down = (tensors.pop(name).chunk(self.num_experts) for name in PROJECTIONS)
        ups, downs = (_apart(matrix.T) for matrix in up), (matrix.T.contiguous() for matrix in down)
        if use_triton(up[0]):
            stacks = _stacked(ups, len(up)), _stacked(downs, len(down))
            self.stacks = stacks
            ups, downs = iter(stacks[0]), iter(stacks[1])
        self.up, self.down = [make_weight(matrix) for matrix in ups], [make_weight(matrix) for matrix in downs]

    @property
    def num_bytes(self) -> int:
        weights = sum(weight.num_bytes for weight in (*self.up, *self.down))
        return weights + self.up_bias.nbytes + self.down_bias.nbytes

    def matrices(self) -> Experts:
        return Experts(self.up, self.down, self.up_bias, self.down_bias, self.stacks)


class Mxfp4Experts(ColumnExperts):
    """Experts in MXFP4 blocks, and so they stay: expanded they would take four times the memory."""

    def __init__(self, spec: MoeSpec, width: int) -> None:
        super().__init__(spec, width)
        if width % BLOCK or spec.expert.hidden % BLOCK:
            raise ModelLoadError(f"MXFP4 experts need sizes that are multiples of {BLOCK}")

    def weight_slots(self) -> dict[str, Slot]:
        slots = {}
        for name, (rows, columns) in self.sizes.items():
            groups = columns // BLOCK
            slots[f"{name}_blocks"] = Slot((rows,), (groups, BLOCK // 2), self.num_experts, torch.uint8)
            slots[f"{name}_scales"] = Slot((rows,), (groups,), self.num_experts, torch.uint8)
        return slots

    def assign_weights(self, tensors: dict[str, Tensor]) -> None:
        up, down = (self._stack(name, tensors) for name in PROJECTIONS)
        up = Mxfp4Stack(_apart(up.blocks, dim=1), _apart(up.scales, dim=1))
        if use_triton(up.blocks):
            self.stacks = up, down
        dtype = self.up_bias.dtype
        self.up, self.down = list(up.matrices(dtype)), list(down.matrices(dtype))

    def _stack(self, name: str, tensors: dict[str, Tensor]) -> Mxfp4Stack:
        blocks, scales = (tensors.pop(f"{name}_{part}") for part in ("blocks", "scales"))
        rows, columns = self.sizes[name]
        groups = columns // BLOCK
        return Mxfp4Stack(
            blocks.view(self.num_experts, rows, groups, BLOCK // 2), scales.view(self.num_experts, rows, groups)
        )


def _apart(alternating: Tensor, dim: int = 0) -> Tensor:
    """Gate's rows, which are the even ones, before up's, as activations take them."""
    return torch.cat(alternating.unflatten(dim, (-1, 2)).unbind(dim + 1), dim)
