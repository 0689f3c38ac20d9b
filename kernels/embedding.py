"""Rows of an embedding matrix by token id."""

import torch.nn.functional as F
from torch import Tensor

from sirocco.kernels.backend import use_triton


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of weight [V, C] that token_ids [T] name, as [T, C]; ids lie in 0 … V - 1."""
    if use_triton(weight):
        from sirocco.kernels.triton import embedding as kernels

        return kernels.embedding(token_ids, weight)
    return F.embedding(token_ids, weight)
