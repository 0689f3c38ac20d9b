"""Run a decoder without an engine: block tables and slots for a handful of sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.mamba import StateBatch
from sirocco.runtime.models.cache import Cache, KvCache, LatentCache, StateCache, allocate_caches
from sirocco.runtime.models.load import LoadedModel
from sirocco.runtime.models.spec import rope_regime


class Harness:
    """Sequences over one pool of blocks, handed out in a shuffled order so that no block is where one would guess.

    Unwritten slots hold NaN: reading one shows in the logits.
    """

    def __init__(self, loaded: LoadedModel, num_sequences: int, max_len: int, block_size: int = 16) -> None:
        self.model = loaded.model
        self.spec = loaded.spec
        self.block_size = block_size
        blocks_each = -(-max_len // block_size)
        order = torch.randperm(num_sequences * blocks_each, generator=torch.Generator().manual_seed(1))
        self.block_table = order.view(num_sequences, blocks_each).int()
        self.lengths = [0] * num_sequences
        self.regimes = [0] * num_sequences
        self.state_slots = torch.randperm(num_sequences, generator=torch.Generator().manual_seed(2))
        self.caches = allocate_caches(
            loaded.spec, order.numel(), block_size, loaded.dtype, loaded.device, num_sequences
        )
        for tensor in self.stored():
            tensor.fill_(float("nan"))

    def stored(self) -> list[Tensor]:
        """The tensors of all caches."""
        return [tensor for cache in self.caches for tensor in tensors_of(cache)]

    def stored_by_token(self) -> list[Tensor]:
        """The tensors of those caches whose slots belong to tokens."""
        return [tensor for cache in self.caches if not isinstance(cache, StateCache) for tensor in tensors_of(cache)]

    def expect(self, lengths: Sequence[int]) -> "Harness":
        """Say how long each sequence will be before its first token is computed."""
        self.regimes = [rope_regime(self.spec, length) for length in lengths]
        return self

    def step(self, pending: Sequence[tuple[int, Sequence[int] | Tensor]]) -> list[Tensor]:
        """Move sequences forward by their pending tokens, or embeddings [tokens, C]; the logits [tokens, V] of each."""
        positions, slots, ids, regimes = [], [], [], []
        states = self.states(pending)
        for sequence, tokens in pending:
            place = torch.arange(self.lengths[sequence], self.lengths[sequence] + len(tokens))
            self.lengths[sequence] += len(tokens)
            positions.append(place)
            block = self.block_table[sequence].long()[place // self.block_size]
            slots.append(block * self.block_size + place % self.block_size)
            ids.append(torch.as_tensor(tokens))
            regimes += [self.regimes[sequence]] * len(tokens)
        hidden = self.model(
            torch.cat(ids),
            torch.cat(positions),
            self.batch(pending),
            torch.cat(slots),
            self.caches,
            states,
            rope_regimes=torch.tensor(regimes) if any(regimes) else None,
        )
        return list(self.model.logits(hidden).split([len(tokens) for _, tokens in pending]))

    def states(self, pending: Sequence[tuple[int, Sequence[int] | Tensor]]) -> StateBatch:
        """Where the recurrent state of these sequences lies, before the step is counted into the lengths."""
        sequences = [sequence for sequence, _ in pending]
        lengths = torch.tensor([self.lengths[sequence] for sequence in sequences])
        return StateBatch(self.state_slots[sequences], lengths > 0, [len(tokens) for _, tokens in pending])

    def batch(self, pending: Sequence[tuple[int, Sequence[int] | Tensor]]) -> AttentionBatch:
        """The layout of a step that has just been counted into the lengths."""
        query_lens = [len(tokens) for _, tokens in pending]
        kv_lens = [self.lengths[sequence] for sequence, _ in pending]
        return layout(query_lens, kv_lens, self.block_table[[sequence for sequence, _ in pending]])


def tensors_of(cache: Cache) -> list[Tensor]:
    match cache:
        case KvCache(k, v):
            return [k, v]
        case LatentCache(latent):
            return [latent]
        case StateCache(tensors):
            return list(tensors.values())
        case _:
            return []


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
    harness = Harness(loaded, 1, len(tokens), block_size).expect([len(tokens)])
    logits, start = [], 0
    for size in chunks:
        logits += harness.step([(0, tokens[start : start + size])])
        start += size
    return torch.cat(logits)


def greedy(loaded: LoadedModel, prompt: Sequence[int], count: int, block_size: int = 16) -> list[int]:
    """The next `count` tokens, each the best of the one before; computed anew where the rope's regime changes."""
    tokens: list[int] = []
    harness = None
    for _ in range(count):
        length = len(prompt) + len(tokens)
        if harness is None or harness.regimes != [rope_regime(loaded.spec, length)]:
            harness = Harness(loaded, 1, len(prompt) + count, block_size).expect([length])
        (logits,) = harness.step([(0, [*prompt, *tokens][harness.lengths[0] :])])
        tokens.append(int(logits[-1].argmax()))
    return tokens
