"""Run a decoder without an engine: block tables and slots for a handful of sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.runtime.models.cache import allocate_caches
from sirocco.runtime.models.load import LoadedModel


class Harness:
    """Sequences over one pool of blocks, handed out in a shuffled order so that no block is where one would guess.

    Unwritten slots hold NaN: reading one shows in the logits.
    """

    def __init__(self, loaded: LoadedModel, num_sequences: int, max_len: int, block_size: int = 16) -> None:
        self.model = loaded.model
        self.block_size = block_size
        blocks_each = -(-max_len // block_size)
        order = torch.randperm(num_sequences * blocks_each, generator=torch.Generator().manual_seed(1))
        self.block_table = order.view(num_sequences, blocks_each).int()
        self.lengths = [0] * num_sequences
        self.caches = allocate_caches(loaded.spec, order.numel(), block_size, loaded.dtype, loaded.device)
        for cache in self.caches:
            cache.k.fill_(float("nan"))
            cache.v.fill_(float("nan"))

    def step(self, pending: Sequence[tuple[int, Sequence[int] | Tensor]]) -> list[Tensor]:
        """Move sequences forward by their pending tokens, or embeddings [tokens, C]; the logits [tokens, V] of each."""
        positions, slots, ids = [], [], []
        for sequence, tokens in pending:
            place = torch.arange(self.lengths[sequence], self.lengths[sequence] + len(tokens))
            self.lengths[sequence] += len(tokens)
            positions.append(place)
            block = self.block_table[sequence].long()[place // self.block_size]
            slots.append(block * self.block_size + place % self.block_size)
            ids.append(torch.as_tensor(tokens))
        hidden = self.model(torch.cat(ids), torch.cat(positions), self.batch(pending), torch.cat(slots), self.caches)
        return list(self.model.logits(hidden).split([len(tokens) for _, tokens in pending]))

    def batch(self, pending: Sequence[tuple[int, Sequence[int] | Tensor]]) -> AttentionBatch:
        """The layout of a step that has just been counted into the lengths."""
        query_lens = [len(tokens) for _, tokens in pending]
        kv_lens = [self.lengths[sequence] for sequence, _ in pending]
        return layout(query_lens, kv_lens, self.block_table[[sequence for sequence, _ in pending]])


def layout(query_lens: list[int], kv_lens: list[int], block_table: Tensor) -> AttentionBatch:
    """The tensors of a batch with these numbers of new and of all tokens."""
    return AttentionBatch(
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(kv_lens).int(),
        block_table=block_table,
        query_lens=query_lens,
        kv_lens=kv_lens,
    )


def run(loaded: LoadedModel, tokens: Sequence[int], chunks: Sequence[int], block_size: int = 16) -> Tensor:
    """Logits [T, V] of one sequence computed in chunks of these sizes."""
    assert sum(chunks) == len(tokens)
    harness = Harness(loaded, 1, len(tokens), block_size)
    logits, start = [], 0
    for size in chunks:
        logits += harness.step([(0, tokens[start : start + size])])
        start += size
    return torch.cat(logits)


def greedy(loaded: LoadedModel, prompt: Sequence[int], count: int, block_size: int = 16) -> list[int]:
    """The next `count` tokens, each the best of the one before."""
    harness = Harness(loaded, 1, len(prompt) + count, block_size)
    tokens: list[int] = []
    pending: Sequence[int] = prompt
    for _ in range(count):
        (logits,) = harness.step([(0, pending)])
        tokens.append(int(logits[-1].argmax()))
        pending = tokens[-1:]
    return tokens
