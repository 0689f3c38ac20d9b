"""Mixture of experts: routing rules, and the experts' products over tokens sorted by expert."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sirocco.kernels.backend import use_native, use_triton
from sirocco.kernels.linear import PackedWeight
from sirocco.kernels.mxfp4 import Mxfp4Stack
from sirocco.kernels.native import ops as native

Stack = Tensor | Mxfp4Stack


class ExpertWeight(Protocol):
    """One expert's matrix [N, K] in some storage form."""

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [R, K] times the transposed matrix, plus bias [N]: [R, N]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """The experts [T, K] of each token and the weight [T, K] of each one's output, in float32 at least."""

    experts: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The matrices of E experts: `up` [N, C] (gate and up stacked where gated) and `down` [C, I].

    Their biases are [E, N] and [E, C]. Where `stacks` holds the same matrices as [E, N, C] and [E, C, I], plain or in
    MXFP4, a device that has a kernel multiplies them in one launch.
    """

    up: Sequence[ExpertWeight]
    down: Sequence[ExpertWeight]
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    stacks: tuple[Stack, Stack] | None = None


def route_softmax(
    logits: Tensor, top_k: int, normalize: bool = False, num_groups: int = 1, top_groups: int = 1, scale: float = 1.0
) -> Routing:
    """Softmax over logits [T, E], then the best `top_k` of it; `normalize` makes a token's weights sum to one.

    Only experts of the `top_groups` groups with the best single expert are eligible (DeepSeek-V2, arXiv:2405.04434).
    """
    scores = _wide(logits).softmax(-1)
    eligible = scores
    if num_groups > 1:
        best = scores.unflatten(-1, (num_groups, -1)).amax(-1)
        eligible = _only_groups(scores, best, top_groups, 0.0)
    weights, experts = eligible.topk(top_k, -1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(experts, weights if scale == 1.0 else weights * scale)


def route_top_k_softmax(logits: Tensor, top_k: int) -> Routing:
    """The best `top_k` of logits [T, E], then softmax over those alone."""
    best, experts = _wide(logits).topk(top_k, -1)
    return Routing(experts, best.softmax(-1))


def route_sigmoid(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    normalize: bool = True,
    num_groups: int = 1,
    top_groups: int = 1,
    scale: float = 1.0,
) -> Routing:
    """Sigmoid of logits [T, E]; bias [E] helps to choose but does not weigh (DeepSeek-V3, arXiv:2412.19437).

    Only experts of the `top_groups` groups whose two best biased scores sum highest are eligible.
    """
    scores = _wide(logits).sigmoid()
    choice = scores + bias
    if num_groups > 1:
        best = choice.unflatten(-1, (num_groups, -1)).topk(2, -1).values.sum(-1)
        choice = _only_groups(choice, best, top_groups, -torch.inf)
    experts = choice.topk(top_k, -1).indices
    weights = scores.gather(-1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, weights * scale)


def route_sparse_mixer(logits: Tensor, jitter: float) -> Routing:
    """The two best experts of logits [T, E], each weighed by a softmax over those within 2 `jitter` of it.

    The second choice does not compete with the first (SparseMixer-v2, arXiv:2409.12136, at inference).
    """
    scores = _wide(logits)
    first, first_weight = _sparse_choice(scores, scores, jitter)
    second, second_weight = _sparse_choice(scores, scores.scatter(-1, first, -torch.inf), jitter)
    return Routing(torch.cat((first, second), -1), torch.cat((first_weight, second_weight), -1))


def clamped_swiglu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """Return gate * sigmoid(alpha * gate) * (up + 1) of gate_up [..., 2 I], gate in the first half, as [..., I].

    Before that the gate is bounded above, and up on both sides, by `limit` (GPT-OSS, arXiv:2508.10925).
    """
    if use_triton(gate_up):
        from sirocco.kernels.triton import activation

        return activation.clamped_swiglu(gate_up, alpha, limit)
    return clamped_swiglu_torch(gate_up, alpha, limit)


def clamped_swiglu_torch(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """The definition of `clamped_swiglu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.clamp(-limit, limit).add_(1))


def apply_experts(
    x: Tensor, routing: Routing, experts: Experts, activation: Callable[[Tensor], Tensor], row_multiple: int = 1
) -> Tensor:
    """Return the weighted sum [T, C] of each token's experts `down(activation(up(x)))` of x [T, C].

    Tokens are sorted by expert, so that each expert multiplies its rows once and without padding, and an expert without
    rows is not touched. A token's outputs are summed in the order of its routing, whatever else is in the batch.
    `row_multiple` pads an expert's rows, where the product of a row depends on how many there are.
    """
    if experts.stacks is not None and use_triton(x):
        from sirocco.kernels.triton import moe  # triton is absent on macOS

        biases = experts.up_bias, experts.down_bias
        return moe.apply_experts(x, routing.experts, routing.weights, *experts.stacks, *biases, activation)
    return apply_experts_torch(x, routing, experts, activation, row_multiple)


def apply_experts_torch(
    x: Tensor, routing: Routing, experts: Experts, activation: Callable[[Tensor], Tensor], row_multiple: int = 1
) -> Tensor:
    """The definition of `apply_experts`."""
    num_tokens, top_k = routing.experts.shape
    if not num_tokens:
        return torch.empty_like(x)
    chosen = routing.experts.flatten()
    order = chosen.argsort(stable=True)
    groups = _groups(chosen, len(experts.up))
    rows = x.index_select(0, order // top_k)
    rows = activation(_grouped_matmul(rows, groups, experts.up, experts.up_bias, row_multiple))
    rows = _grouped_matmul(rows, groups, experts.down, experts.down_bias, row_multiple)
    outputs = torch.empty_like(rows).index_copy_(0, order, rows).view(num_tokens, top_k, -1)
    out: Tensor = torch.bmm(routing.weights.to(x.dtype)[:, None], outputs).squeeze(1)
    return out


def _groups(chosen: Tensor, num_experts: int) -> list[tuple[int, int]]:
    """Which experts have rows, and how many, in order."""
    counts = chosen.bincount(minlength=num_experts).tolist()
    return [(expert, count) for expert, count in enumerate(counts) if count]


def _grouped_matmul(
    rows: Tensor,
    groups: list[tuple[int, int]],
    weights: Sequence[ExpertWeight],
    biases: Tensor | None,
    row_multiple: int,
) -> Tensor:
    """Multiply each run of rows [R, K] by its expert's matrix: [R, N]."""
    packed = [getattr(weights[expert], "packed", None) for expert, _ in groups]
    laid_out = [one for one in packed if isinstance(one, PackedWeight) and one.native]
    if laid_out and len(laid_out) == len(groups) and use_native(rows):
        added = None if biases is None else [biases[expert] for expert, _ in groups]
        counts, blocks = [count for _, count in groups], [one.blocks for one in laid_out]
        return native.grouped_linear(rows, counts, blocks, laid_out[0].shape[0], added)
    parts = rows.split([count for _, count in groups])
    return torch.cat(
        [
            weights[expert].matmul(_padded(part, row_multiple), None if biases is None else biases[expert])[:count]
            for part, (expert, count) in zip(parts, groups, strict=True)
        ]
    )


def _padded(rows: Tensor, multiple: int) -> Tensor:
    return rows if len(rows) % multiple == 0 else F.pad(rows, (0, 0, 0, -len(rows) % multiple))


def _only_groups(scores: Tensor, group_scores: Tensor, top_groups: int, otherwise: float) -> Tensor:
    """scores [T, E] with `otherwise` outside the best `top_groups` of group_scores [T, num_groups]."""
    best = group_scores.topk(top_groups, -1).indices
    outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, best, False)
    grouped: Tensor = scores.unflatten(-1, (group_scores.shape[-1], -1))
    return grouped.masked_fill(outside[..., None], otherwise).view_as(scores)


def _sparse_choice(scores: Tensor, candidates: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The best of candidates [T, E] and its share [T, 1] among those that are near it."""
    best, expert = candidates.max(-1, keepdim=True)
    far = (best - scores) / scores.abs().clamp(min=best) > 2 * jitter
    return expert, candidates.masked_fill(far, -torch.inf).softmax(-1).gather(-1, expert)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
