"""Trainer processes of a thread each that share one step: two threads of one process wait too much for each other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Barrier

import torch
from torch import Tensor

__all__ = ["Crew"]

PATIENCE = 1800.0  # seconds to wait for a process that may have been killed, or compiles on a busy machine


class Crew:
    """This process among `size` that call the same methods in the same order and see the same results, bit by bit."""

    def __init__(self, size: int, elements: int) -> None:
        """A crew whose messages have at most `elements` float32 values; pickles into a spawned process."""
        self.rank, self.size = 0, size
        # Two boxes in turn: who fills one knows that all have read it before the other was handed round.
        self.boxes = torch.zeros(2, size, elements if size > 1 else 0).share_memory_()
        self.barrier: Barrier = multiprocessing.get_context("spawn").Barrier(size)
        self.turn = 0

    def as_rank(self, rank: int) -> Crew:
        """The same crew seen by one of its other processes."""
        self.rank = rank
        return self

    def abandon(self) -> None:
        """Have the others fail rather than wait for this process."""
        self.barrier.abort()

    def total(self, flat: Tensor) -> None:
        """Replace flat [N] by its sum over the processes."""
        if self.size == 1:
            return
        box = self.boxes[self.turn][:, : flat.numel()]
        self.turn ^= 1
        box[self.rank] = flat
        self.barrier.wait(PATIENCE)
        torch.sum(box, 0, out=flat)

    def divided(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """function(batch [N, …]) of like shape, float32, each process doing its part of the N."""
        if self.size == 1:
            return function(batch)
        whole = torch.zeros_like(batch)
        bounds = [batch.shape[0] * i // self.size for i in range(self.size + 1)]
        mine = slice(bounds[self.rank], bounds[self.rank + 1])
        whole[mine] = function(batch[mine])
        self.total(whole.view(-1))
        return whole
