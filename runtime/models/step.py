"""What all layers of one forward share."""

from dataclasses import dataclass

from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.runtime.models.rope import RopeTables


@dataclass(frozen=True, slots=True)
class StateBatch:
    """Where each request's recurrent state lies, and whether there is one yet or the request begins with this step."""

    slots: Tensor  # [B]
    has_state: Tensor  # [B] bool


@dataclass(frozen=True, slots=True)
class Step:
    """The batch's layout, where each token's keys and values go, each rope's tables, each request's state."""

    batch: AttentionBatch
    slot_mapping: Tensor
    ropes: tuple[RopeTables, ...]
    states: StateBatch | None = None
