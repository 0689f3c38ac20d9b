"""Muon for the matrices and Adam for the rest, both with a scheduled step size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sirocco.runtime.demo.crew import Crew

__all__ = ["Muon", "orthogonalize"]


def orthogonalize(batch: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices of batch [N, R, C], R ≤ C: five Newton–Schulz steps in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    wide: Tensor = x.float()
    return wide


class Muon(Optimizer):
    """Momentum whose matrix updates are orthogonalised (Jordan et al., 2024).

    A parameter may be a stack of matrices over one input; its group's `slices` gives their row counts, and each is
    orthogonalised on its own. Equal shapes go through one batched product, of which each process of the crew does a
    part.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], crew: Crew, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        self.crew = crew
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "slices": ()})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        pending: dict[tuple[int, int], list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                slices = group["slices"] or (parameter.shape[0],)
                for part, target in zip(update.split(slices), parameter.split(slices), strict=True):
                    tall = part.shape[0] > part.shape[1]
                    wide, view = (part.mT, target.mT) if tall else (part, target)
                    scale = -group["lr"] * max(1.0, part.shape[0] / part.shape[1]) ** 0.5
                    pending[wide.shape[0], wide.shape[1]].append((wide, view, scale))
        for work in pending.values():
            steps = self.crew.divided(orthogonalize, torch.stack([wide for wide, _, _ in work]))
            for (_, view, scale), direction in zip(work, steps, strict=True):
                view.add_(direction, alpha=scale)
