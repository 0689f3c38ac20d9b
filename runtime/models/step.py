"""What all layers of one forward share."""

from dataclasses import dataclass, field

from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.backend import use_triton
from sirocco.kernels.mamba import StateBatch
from sirocco.kernels.native.layer import StepPlace
from sirocco.runtime.models.rope import RopeTables


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the tokens of a step lie for one group of layers: the batch with its block table, the new ones' slots."""

    batch: AttentionBatch
    slot_mapping: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The batch's layout, where each token's keys and values go, each rope's tables, each request's state.

    `distance_bias` [H, 2 R + 1] is added to the scores of bidirectional attention: see its operator.
    """

    batch: AttentionBatch
    slot_mapping: Tensor
    ropes: tuple[RopeTables, ...]
    states: StateBatch | None = None
    distance_bias: Tensor | None = None
    places: dict[int | None, StepPlace] = field(default_factory=dict, init=False)  # of fused layers, by their rope
    _padded: list[bool] = field(default_factory=list, init=False, repr=False)

    def padded(self) -> bool:
        """Whether a slot may be negative: on a GPU always, where kernels see it themselves and nothing waits for it."""
        if not self._padded:
            self._padded.append(use_triton(self.slot_mapping) or bool((self.slot_mapping < 0).any()))
        return self._padded[0]
