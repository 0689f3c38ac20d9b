"""The feed-forward as a mixture of experts."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sirocco.kernels.backend import use_triton
from sirocco.kernels.moe import (
    Experts,
    Routing,
    apply_experts,
    clamped_swiglu,
    route_sigmoid,
    route_softmax,
    route_sparse_mixer,
    route_top_k_softmax,
)
from sirocco.runtime.models.interleaved import ColumnExperts, Mxfp4Experts
from sirocco.runtime.models.linear import Weight, make_weight
from sirocco.runtime.models.mlp import gated_by, make_mlp
from sirocco.runtime.models.spec import (
    MoeSpec,
    SigmoidRouting,
    SoftmaxRouting,
    SparseMixerRouting,
    TopKRouting,
)
from sirocco.runtime.weights import Loadable, Slot

CORRECTION = "e_score_correction_bias"


class Router(Loadable):
    """Scores every expert and chooses each token's; in float32, since a choice that flips changes the token."""

    weight: Tensor
    bias: Tensor | None
    correction: Tensor | None

    def __init__(self, spec: MoeSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.width = width

    def slots(self) -> dict[str, Slot]:
        size = (self.spec.num_experts,)
        slots = {"weight": Slot(size, (self.width,), dtype=torch.float32)}
        match self.spec.routing:
            case TopKRouting(bias=True):
                slots["bias"] = Slot(size, dtype=torch.float32)
            case SigmoidRouting():
                slots[CORRECTION] = Slot(size, dtype=torch.float32)
        return slots

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.weight = tensors.pop("weight")
        self.bias = tensors.pop("bias", None)
        self.correction = tensors.pop(CORRECTION, None)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.weight, self.bias, self.correction) if tensor is not None)

    def forward(self, x: Tensor) -> Routing:
        """x [T, C] to experts and weights [T, K]."""
        logits, top_k = F.linear(x.float(), self.weight, self.bias), self.spec.top_k
        match self.spec.routing:
            case SoftmaxRouting(normalize, num_groups, top_groups, scale):
                return route_softmax(logits, top_k, normalize, num_groups, top_groups, scale)
            case TopKRouting():
                return route_top_k_softmax(logits, top_k)
            case SigmoidRouting(normalize, num_groups, top_groups, scale):
                assert self.correction is not None
                return route_sigmoid(logits, self.correction, top_k, normalize, num_groups, top_groups, scale)
            case SparseMixerRouting(jitter):
                return route_sparse_mixer(logits, jitter)


class ExpertMatrices(Loadable):
    """One matrix for each expert, of parts [part, K] that checkpoints may keep apart."""

    weights: list[Weight]
    bias: Tensor | None
    stack: Tensor | None

    def __init__(self, num_experts: int, parts: tuple[int, ...], in_features: int, bias: bool) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.parts = parts
        self.in_features = in_features
        self.has_bias = bias

    def slots(self) -> dict[str, Slot]:
        slots = {"weight": Slot(self.parts, (self.in_features,), self.num_experts)}
        if self.has_bias:
            slots["bias"] = Slot(self.parts, count=self.num_experts)
        return slots

    def assign(self, tensors: dict[str, Tensor]) -> None:
        bias = tensors.get("bias")
        self.bias = None if bias is None else bias.view(self.num_experts, -1)
        matrices = tensors.pop("weight").view(self.num_experts, -1, self.in_features)
        self.stack = matrices if use_triton(matrices) else None
        self.weights = [make_weight(matrix) for matrix in matrices]

    @property
    def num_bytes(self) -> int:
        return sum(weight.num_bytes for weight in self.weights) + (0 if self.bias is None else self.bias.nbytes)


class RowExperts(nn.Module):
    """Experts whose checkpoints hold every output as a row."""

    def __init__(self, spec: MoeSpec, width: int) -> None:
        super().__init__()
        expert = spec.expert
        self.up = ExpertMatrices(spec.num_experts, (expert.hidden, expert.hidden), width, expert.bias)
        self.down = ExpertMatrices(spec.num_experts, (width,), expert.hidden, expert.bias)

    def matrices(self) -> Experts:
        up, down = self.up, self.down
        stacks = None if up.stack is None or down.stack is None else (up.stack, down.stack)
        return Experts(up.weights, down.weights, up.bias, down.bias, stacks)


class MoeFfn(nn.Module):
    """Each token passes the experts that the router chooses for it, and the shared feed-forward where there is one."""

    row_multiple = 1  # rows of an expert are padded to, where a token's numbers must not depend on others'

    def __init__(self, spec: MoeSpec, width: int) -> None:
        super().__init__()
        self.router = Router(spec, width)
        self.experts = EXPERTS[spec.layout](spec, width)
        self.activation = _activation(spec)
        self.shared = make_mlp(spec.shared, width) if spec.shared else None

    def forward(self, x: Tensor) -> Tensor:
        """x [T, C] to [T, C]."""
        out = apply_experts(x, self.router(x), self.experts.matrices(), self.activation, self.row_multiple)
        return out if self.shared is None else out.add_(self.shared(x))


EXPERTS: dict[str, Callable[[MoeSpec, int], RowExperts | ColumnExperts]] = {
    "rows": RowExperts,
    "columns": ColumnExperts,
    "mxfp4": Mxfp4Experts,
}


def _activation(spec: MoeSpec) -> Callable[[Tensor], Tensor]:
    if spec.clamp is not None:
        return partial(clamped_swiglu, alpha=spec.clamp.alpha, limit=spec.clamp.limit)
    return gated_by(spec.expert)
