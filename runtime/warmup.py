"""Running every operator of a step once before the first request, so that none waits for a compiler."""

from collections.abc import Sequence

import torch

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.mamba import StateBatch
from sirocco.kernels.sampling import SamplingTensors, apply_penalties, sample, token_logprobs
from sirocco.runtime.blocks import NULL_BLOCK
from sirocco.runtime.models.cache import Cache
from sirocco.runtime.models.decoder import Decoder

CONTEXT = 2048  # keys beside it, so long that attention splits them
NUM_TOP = 20  # the most alternatives that OpenAI's API lets one ask for


@torch.inference_mode()
def warm_up(
    model: Decoder,
    caches: Sequence[Cache],
    block_size: int,
    chunk_size: int,
    max_model_len: int,
    device: torch.device,
) -> None:
    """Compute a decode beside a whole chunk and one alone, over the null block and of no consequence; draw from it.

    Recurrent layers leave what comes of it in the first slot, which a request that begins there ignores.
    """
    context = min(CONTEXT, max_model_len)
    for queries in ([1, min(chunk_size, context)], [1]):
        hidden = _compute(model, caches, block_size, queries, context, device)
    _draw(model.logits(hidden[-1:]))


def _compute(
    model: Decoder, caches: Sequence[Cache], block_size: int, queries: list[int], context: int, device: torch.device
) -> torch.Tensor:
    """Hidden states of the last so many tokens of requests of `context` tokens each."""
    positions = torch.tensor([t for count in queries for t in range(context - count, context)], device=device)
    ends = torch.tensor([0, *queries]).cumsum(0).to(device, torch.int32)
    layout = AttentionBatch(
        cu_seqlens_q=ends,
        seq_lens=torch.full((len(queries),), context, dtype=torch.int32, device=device),
        block_table=torch.full((len(queries), -(-context // block_size)), NULL_BLOCK, dtype=torch.int32, device=device),
        query_lens=queries,
        kv_lens=[context] * len(queries),
    )
    slot_mapping = NULL_BLOCK * block_size + positions % block_size
    token_ids = torch.zeros(len(positions), dtype=torch.int32, device=device)
    slots = torch.zeros(len(queries), dtype=torch.int64, device=device)
    states = StateBatch(slots, slots.bool(), queries) if model.spec.cache_bytes_per_request(1) else None
    return model.forward(token_ids, positions, layout, slot_mapping, caches, states)


def _draw(logits: torch.Tensor) -> None:
    """A greedy and a free draw, one above a bound and one among the best, penalties, log probabilities."""
    device = logits.device
    column, whole = torch.ones(1, device=device), torch.ones(1, dtype=torch.int64, device=device)
    counts = torch.zeros(logits.shape, dtype=torch.int32, device=device)
    for greedy, bounded, filtered in (
        (True, False, False),
        (False, False, False),
        (False, True, False),
        (False, False, True),
    ):
        params = SamplingTensors(
            temperature=column,
            top_k=torch.full((1,), 8 if filtered else 0, dtype=torch.int32, device=device),
            top_p=column,
            min_p=column * (0.1 if bounded else 0.0),
            seed=whole,
            position=whole,
            greedy=greedy,
            any_greedy=greedy,
            uses_top_k=filtered,
            uses_top_p=filtered,
            uses_min_p=bounded,
            max_top_k=8 if filtered else 0,
        )
        sample(logits, params)
    apply_penalties(logits, counts, counts.bool(), column, column, column)
    token_logprobs(logits, whole, min(NUM_TOP, logits.shape[-1]))
