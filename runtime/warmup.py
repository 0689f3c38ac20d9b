"""Running every operator of a step once before the first request, so that none waits for a compiler."""

from collections.abc import Sequence

import torch

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.sampling import SamplingTensors, apply_penalties, sample, token_logprobs
from sirocco.runtime.blocks import NULL_BLOCK
from sirocco.runtime.models.cache import Cache
from sirocco.runtime.models.decoder import Decoder

CHUNK = 256  # tokens: more rows than any kernel takes for a decode
CONTEXT = 2048  # keys beside it, so long that attention splits them
NUM_TOP = 20  # the most alternatives that OpenAI's API lets one ask for


@torch.inference_mode()
def warm_up(model: Decoder, caches: Sequence[Cache], block_size: int, max_model_len: int, device: torch.device) -> None:
    """Compute a chunk beside a decode, both over the null block and of no consequence, and draw from the result."""
    context = min(CONTEXT, max_model_len)
    queries = [1, min(CHUNK, context)]
    start = context - queries[1]
    positions = torch.tensor([context - 1, *range(start, context)], device=device)
    layout = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, 1, sum(queries)], dtype=torch.int32, device=device),
        seq_lens=torch.full((2,), context, dtype=torch.int32, device=device),
        block_table=torch.full((2, -(-context // block_size)), NULL_BLOCK, dtype=torch.int32, device=device),
        query_lens=queries,
        kv_lens=[context, context],
    )
    slot_mapping = NULL_BLOCK * block_size + positions % block_size
    token_ids = torch.zeros(len(positions), dtype=torch.int32, device=device)
    hidden = model(token_ids, positions, layout, slot_mapping, caches)
    _draw(model.logits(hidden[-1:]))


def _draw(logits: torch.Tensor) -> None:
    """A greedy, a free and a filtered draw, penalties, log probabilities."""
    device = logits.device
    column, whole = torch.ones(1, device=device), torch.ones(1, dtype=torch.int64, device=device)
    counts = torch.zeros(logits.shape, dtype=torch.int32, device=device)
    for greedy, filtered in ((True, False), (False, False), (False, True)):
        params = SamplingTensors(
            temperature=column,
            top_k=torch.full((1,), 8, dtype=torch.int32, device=device),
            top_p=column,
            min_p=column * 0,
            seed=whole,
            position=whole,
            greedy=greedy,
            any_greedy=greedy,
            uses_top_k=filtered,
            uses_top_p=filtered,
            uses_min_p=False,
            max_top_k=8 if filtered else 0,
        )
        sample(logits, params)
    apply_penalties(logits, counts, counts.bool(), column, column, column)
    token_logprobs(logits, whole, min(NUM_TOP, logits.shape[-1]))
