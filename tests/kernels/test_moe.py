"""Routing against loops over tokens, grouped products against one token at a time."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.activation import swiglu
from sirocco.kernels.linear import PackedWeight, pack_linear, packed_linear
from sirocco.kernels.moe import (
    Experts,
    Routing,
    apply_experts,
    route_sigmoid,
    route_softmax,
    route_sparse_mixer,
    route_top_k_softmax,
)

T, E = 37, 12


class Matrix:
    """An expert's matrix as the operators want it; counts the rows that it multiplies."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = pack_linear(weight)
        self.num_rows = 0

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        self.num_rows += len(x)
        if isinstance(self.weight, PackedWeight):
            return packed_linear(x, self.weight, bias)
        return torch.nn.functional.linear(x, self.weight, bias)


def by_expert(routing: Routing) -> list[dict[int, float]]:
    """Each token's weights by expert."""
    pairs = zip(routing.experts.tolist(), routing.weights.tolist(), strict=True)
    return [dict(zip(experts, weights, strict=True)) for experts, weights in pairs]


def best(scores: list[float], count: int, eligible: set[int]) -> list[int]:
    return sorted(eligible, key=lambda e: -scores[e])[:count]


def groups_of(count: int) -> list[range]:
    return [range(g * E // count, (g + 1) * E // count) for g in range(count)]


def assert_routed(routing: Routing, expected: list[dict[int, float]]) -> None:
    actual = by_expert(routing)
    assert [set(weights) for weights in actual] == [set(weights) for weights in expected]
    for got, wanted in zip(actual, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("num_groups", "top_groups", "scale"), [(1, 1, 1.0), (4, 2, 1.0), (3, 1, 16.0)])
def test_softmax_then_top_k(normalize: bool, num_groups: int, top_groups: int, scale: float) -> None:
    logits, expected = torch.randn(T, E), []
    for scores in logits.double().softmax(-1).tolist():
        ranked = sorted(groups_of(num_groups), key=lambda group: -max(scores[e] for e in group))
        chosen = best(scores, 3, {e for group in ranked[:top_groups] for e in group})
        total = sum(scores[e] for e in chosen) if normalize else 1.0
        expected.append({e: scale * scores[e] / total for e in chosen})
    assert_routed(route_softmax(logits, 3, normalize, num_groups, top_groups, scale), expected)


def test_top_k_then_softmax() -> None:
    logits, expected = torch.randn(T, E), []
    for scores in logits.double().tolist():
        chosen = best(scores, 4, set(range(E)))
        weights = torch.tensor([scores[e] for e in chosen]).softmax(0).tolist()
        expected.append(dict(zip(chosen, weights, strict=True)))
    assert_routed(route_top_k_softmax(logits, 4), expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("num_groups", "top_groups", "scale"), [(1, 1, 1.0), (4, 2, 2.5), (3, 1, 1.0)])
def test_sigmoid_with_a_bias_that_only_chooses(normalize: bool, num_groups: int, top_groups: int, scale: float) -> None:
    logits, bias, expected = torch.randn(T, E), torch.randn(E), []
    for scores in logits.double().sigmoid().tolist():
        choice = [score + float(b) for score, b in zip(scores, bias, strict=True)]
        ranked = sorted(groups_of(num_groups), key=lambda group: -sum(sorted(choice[e] for e in group)[-2:]))
        chosen = best(choice, 3, {e for group in ranked[:top_groups] for e in group})
        total = sum(scores[e] for e in chosen) if normalize else 1.0
        expected.append({e: scale * scores[e] / total for e in chosen})
    assert_routed(route_sigmoid(logits, bias, 3, normalize, num_groups, top_groups, scale), expected)


@pytest.mark.parametrize("jitter", [0.01, 0.2])
def test_sparse_mixer(jitter: float) -> None:
    logits, expected = torch.randn(T, E), []
    for scores in logits.double().tolist():
        weights: dict[int, float] = {}
        for _ in range(2):
            left = [e for e in range(E) if e not in weights]
            first = max(left, key=lambda e: scores[e])
            near = [e for e in left if (scores[first] - scores[e]) / max(abs(scores[e]), scores[first]) <= 2 * jitter]
            total = sum(torch.tensor(scores[e]).exp().item() for e in near)
            weights[first] = torch.tensor(scores[first]).exp().item() / total
        expected.append(weights)
    assert_routed(route_sparse_mixer(logits, jitter), expected)


def test_routing_is_at_least_float32() -> None:
    logits = torch.randn(T, E).bfloat16()
    for routing in (route_softmax(logits, 2), route_top_k_softmax(logits, 2), route_sparse_mixer(logits, 0.01)):
        assert routing.weights.dtype == torch.float32
    assert route_softmax(logits.double(), 2).weights.dtype == torch.float64


def expected_experts(x: Tensor, routing: Routing, up: Tensor, down: Tensor, biases: list[Tensor] | None) -> Tensor:
    """One token and one expert at a time."""
    out = torch.zeros(len(x), down.shape[1], dtype=torch.float64)
    for t in range(len(x)):
        for e, weight in by_expert(routing)[t].items():
            hidden = up[e].double() @ x[t].double() + (0 if biases is None else biases[0][e].double())
            hidden = torch.nn.functional.silu(hidden[: len(hidden) // 2]) * hidden[len(hidden) // 2 :]
            out[t] += weight * (down[e].double() @ hidden + (0 if biases is None else biases[1][e].double()))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 1), (1, 3), (2, 2), (29, 3), (200, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_experts(dtype: torch.dtype, num_tokens: int, top_k: int, with_bias: bool) -> None:
    num_experts, width, hidden = 7, 48, 20
    x = torch.randn(num_tokens, 2 * width).to(dtype)[:, :width]
    up = (torch.randn(num_experts, 2 * hidden, width) / width**0.5).to(dtype)
    down = (torch.randn(num_experts, width, hidden) / hidden**0.5).to(dtype)
    biases = [torch.randn(num_experts, n).to(dtype) for n in (2 * hidden, width)] if with_bias else None
    routing = route_softmax(torch.randn(num_tokens, num_experts), top_k, normalize=True)
    experts = Experts([Matrix(w) for w in up], [Matrix(w) for w in down], *(biases or ()))
    actual = apply_experts(x, routing, experts, swiglu)
    assert actual.shape == (num_tokens, width) and actual.dtype == dtype
    expected = expected_experts(x, routing, up, down, biases)
    atol = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float64: 1e-12}[dtype]  # of outputs up to 8
    assert_close(actual.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=atol)


def test_an_expert_multiplies_its_own_rows_and_no_padding() -> None:
    x = torch.randn(T, 16)
    chosen = torch.stack([torch.randperm(5)[:2] for _ in range(T)])  # experts 5 and 6 have no tokens
    up, down = ([Matrix(torch.randn(size)) for _ in range(7)] for size in ((8, 16), (16, 4)))
    apply_experts(x, Routing(chosen, torch.rand(T, 2)), Experts(up, down), swiglu)
    counts = chosen.flatten().bincount(minlength=7).tolist()
    assert [matrix.num_rows for matrix in up] == [matrix.num_rows for matrix in down] == counts


def test_a_token_does_not_depend_on_the_others() -> None:
    x, logits = torch.randn(T, 64, dtype=torch.float64), torch.randn(T, 7)
    up, down = ([Matrix(torch.randn(size).double()) for _ in range(7)] for size in ((64, 64), (64, 32)))
    together = apply_experts(x, route_softmax(logits, 3), Experts(up, down), swiglu)
    alone = [apply_experts(x[i, None], route_softmax(logits[i, None], 3), Experts(up, down), swiglu) for i in range(T)]
    assert_close(together, torch.cat(alone))


def test_no_tokens_are_no_work() -> None:
    experts = Experts([Matrix(torch.randn(16, 8))], [Matrix(torch.randn(8, 8))], None, None)
    routing = Routing(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
    assert apply_experts(torch.zeros(0, 8), routing, experts, swiglu).shape == (0, 8)
