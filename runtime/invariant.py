"""The batch-invariant runner: a token's numbers are the same to the last bit whatever is computed beside it.

Every operator sees the same shapes in every step: tokens go through the model in panels of `PANEL` rows, short ones
padded, and each token attends as a row of its own, whose shape follows from its position alone. A chunk of a prompt so
costs as much as its tokens one by one, in groups of `PANEL`.
"""

from typing import Any

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.moe import MoeFfn
from sirocco.runtime.models.step import Placement
from sirocco.runtime.runner import Batch, ModelRunner

PANEL = 16


class InvariantRunner(ModelRunner):
    """A `ModelRunner` whose forward and output head work on panels of fixed shape."""

    def __init__(self, model: Decoder, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        for module in model.modules():
            if isinstance(module, MoeFfn):
                module.row_multiple = PANEL  # how many rows an expert has depends on the other tokens

    def forward(self, batch: Batch) -> Tensor:
        rows = [row for row, count in enumerate(batch.attention.query_lens) for _ in range(count)]
        return torch.cat([self._panel(batch, rows, start) for start in range(0, len(rows), PANEL)])

    def logits(self, hidden: Tensor) -> Tensor:
        panels = (_pad(panel) for panel in hidden.split(PANEL))
        return torch.cat([self.model.logits(panel) for panel in panels])[: len(hidden)]

    def _panel(self, batch: Batch, rows: list[int], start: int) -> Tensor:
        """Hidden states of up to `PANEL` tokens. Padding repeats token 0 at position 0 over the null block."""
        tokens = slice(start, start + PANEL)
        positions = batch.positions[tokens]
        count = len(positions)
        padding = PANEL - count
        lengths = [*(positions + 1).tolist(), *[1] * padding]
        cu_seqlens_q = torch.arange(PANEL + 1, dtype=torch.int32, device=self.device)
        seq_lens = torch.tensor(lengths, dtype=torch.int32, device=self.device)

        def place(table: Tensor, slots: Tensor) -> Placement:
            attention = AttentionBatch(
                cu_seqlens_q=cu_seqlens_q,
                seq_lens=seq_lens,
                block_table=_pad(table[rows[tokens]]),
                query_lens=[1] * PANEL,
                kv_lens=lengths,
                invariant=True,
            )
            return Placement(attention, _pad(slots[tokens]))  # slot 0 belongs to the null block

        first = place(batch.attention.block_table, batch.slot_mapping)
        hidden = self.model.forward(
            _pad(batch.token_ids[tokens]),
            _pad(positions),
            first.batch,
            first.slot_mapping,
            self.caches,
            None,
            None if batch.rope_regimes is None else _pad(batch.rope_regimes[tokens]),
            [place(other.batch.block_table, other.slot_mapping) for other in batch.others],
        )
        return hidden[:count]


def _pad(rows: Tensor) -> Tensor:
    if len(rows) == PANEL:
        return rows
    return torch.cat([rows, rows.new_zeros(PANEL - len(rows), *rows.shape[1:])])
