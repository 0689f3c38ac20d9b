"""The calls that `sirocco bench tune` times: one kernel each, with the sizes of well-known models.

Each takes the size by which its kernel's configurations are chosen. Where a kernel reads much, it is more than a
device's caches hold: a model comes back to a layer after all the others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sirocco.bench.kernel_cases import BLOCK_SIZE, Setting, paged_layout, randn
from sirocco.kernels.mamba import StateBatch
from sirocco.kernels.mxfp4 import BLOCK, Mxfp4Stack
from sirocco.kernels.sampling import SamplingTensors
from sirocco.kernels.triton import (
    activation,
    attention,
    bidirectional,
    embedding,
    kv,
    mamba,
    mla,
    moe,
    mxfp4,
    norm,
    rope,
    sampling,
)
from sirocco.kernels.triton import bitmask as bitmask_kernel
from sirocco.kernels.triton import logits as logits_kernels
from sirocco.kernels.triton.tune import Call


def decode(head_dim: int, setting: Setting) -> Call:
    """A step of 32 requests with 4k tokens each, 4 query heads a KV head."""
    queries, keys = ([1, 1], [40, 70]) if setting.small else ([1] * 32, [4096] * 32)
    return _paged(head_dim, queries, keys, setting)


def prefill(head_dim: int, setting: Setting) -> Call:
    """A prompt of 4k tokens, and a chunk of 1k at the end of 8k."""
    queries, keys = ([40, 20], [40, 70]) if setting.small else ([4096, 1024], [4096, 8192])
    return _paged(head_dim, queries, keys, setting)


def _paged(head_dim: int, query_lens: list[int], kv_lens: list[int], setting: Setting) -> Call:
    heads, kv_heads = (4, 1) if setting.small else (32, 8)
    layout, num_blocks = paged_layout(query_lens, kv_lens, setting.device)
    q = randn(setting, sum(query_lens), heads, head_dim)
    keys, values = (randn(setting, num_blocks, kv_heads, BLOCK_SIZE, head_dim) for _ in range(2))
    return lambda: attention.paged_attention(q, keys, values, layout, head_dim**-0.5, None, None, None)


def encode(head_dim: int, setting: Setting) -> Call:
    """16 sequences of 512 tokens to themselves."""
    lengths, heads = ([40], 1) if setting.small else ([512] * 16, 16)
    q, k, v = randn(setting, sum(lengths), 3 * heads, head_dim).split(heads, 1)
    layout, _ = paged_layout(lengths, lengths, setting.device)
    return lambda: bidirectional.bidirectional_attention(q, k, v, layout, head_dim**-0.5, None, None)


def latent_decode(num_heads: int, setting: Setting) -> Call:
    """A step of 32 requests with 4k tokens each."""
    queries, keys = ([1], [40]) if setting.small else ([1] * 32, [4096] * 32)
    return _latent(num_heads, queries, keys, setting)


def latent_prefill(num_heads: int, setting: Setting) -> Call:
    """A chunk of 1k tokens at the end of 4k."""
    queries, keys = ([5], [40]) if setting.small else ([1024], [4096])
    return _latent(num_heads, queries, keys, setting)


def _latent(num_heads: int, query_lens: list[int], kv_lens: list[int], setting: Setting) -> Call:
    """In the latent space, with the sizes of DeepSeek's models, as far as the kernel goes in this dtype."""
    rank, rope_dim = (64, 16) if setting.small else (mla.MAX_RANK[setting.dtype.itemsize], 64)
    layout, num_blocks = paged_layout(query_lens, kv_lens, setting.device)
    q, turned = (randn(setting, sum(query_lens), num_heads, size) for size in (rank, rope_dim))
    cache = randn(setting, num_blocks, BLOCK_SIZE, rank + rope_dim)
    return lambda: mla.attend(q, turned, cache, layout, (128 + rope_dim) ** -0.5)


def write_latent(rank: int, setting: Setting) -> Call:
    """The latents of 8k tokens with 16 heads of queries."""
    num_tokens, heads = (5, 3) if setting.small else (8192, 16)
    q, latents = randn(setting, num_tokens, heads, 192), randn(setting, num_tokens, rank + 64)
    weight, (cos, sin) = randn(setting, rank), _tables(num_tokens, 64, setting)
    cache = randn(setting, num_tokens // BLOCK_SIZE + 1, BLOCK_SIZE, rank + 64)
    slots = torch.randperm(num_tokens).to(setting.device)
    return lambda: mla.norm_rope_write_latent(q, latents, weight, 1e-6, cos, sin, True, cache, slots)


def add_rms_norm(width: int, setting: Setting) -> Call:
    """64 M elements."""
    num_tokens = 5 if setting.small else (1 << 26) // width
    x, residual = (randn(setting, num_tokens, width) for _ in range(2))
    weight = randn(setting, width)
    return lambda: norm.add_rms_norm(x, residual, weight, 1e-6)


def swiglu(width: int, setting: Setting) -> Call:
    """128 M elements in."""
    x = randn(setting, 3 if setting.small else (1 << 26) // width, 2 * width)
    return lambda: activation.gated(x, "silu")


def gather(width: int, setting: Setting) -> Call:
    """64 M elements."""
    vocab_size, num_tokens = (50, 5) if setting.small else (151936, (1 << 26) // width)
    table = randn(setting, vocab_size, width)
    ids = torch.randint(vocab_size, (num_tokens,)).to(setting.device)
    return lambda: embedding.embedding(ids, table)


def norm_rope_write(head_dim: int, setting: Setting) -> Call:
    """8k tokens with 32 heads of queries and 8 of keys."""
    num_tokens, heads, kv_heads = (5, 4, 2) if setting.small else (8192, 32, 8)
    qkv = randn(setting, num_tokens, (heads + 2 * kv_heads) * head_dim)
    weight, (cos, sin) = randn(setting, head_dim), _tables(num_tokens, head_dim, setting)
    caches, slots = _caches(num_tokens, kv_heads, head_dim, setting)
    return lambda: kv.norm_rope_write(qkv, weight, weight, 1e-6, cos, sin, False, *caches, slots, heads, kv_heads)


def write_kv(head_dim: int, setting: Setting) -> Call:
    """8k tokens with 8 heads of keys."""
    num_tokens, heads = (5, 2) if setting.small else (8192, 8)
    keys, values = (randn(setting, num_tokens, heads, head_dim) for _ in range(2))
    caches, slots = _caches(num_tokens, heads, head_dim, setting)
    return lambda: kv.write_kv(keys, values, *caches, slots)


def rotate(head_dim: int, setting: Setting) -> Call:
    """8k tokens with 32 heads."""
    num_tokens, heads = (5, 4) if setting.small else (8192, 32)
    x, (cos, sin) = randn(setting, num_tokens, heads, head_dim), _tables(num_tokens, head_dim, setting)
    return lambda: rope.rotate(x, cos, sin)


def _tables(num_tokens: int, rotary_dim: int, setting: Setting) -> tuple[Tensor, Tensor]:
    angles = torch.rand(num_tokens, rotary_dim // 2, device=setting.device) * 6
    return angles.cos(), angles.sin()


def _caches(num_tokens: int, heads: int, head_dim: int, setting: Setting) -> tuple[tuple[Tensor, Tensor], Tensor]:
    shape = (num_tokens // BLOCK_SIZE + 1, heads, BLOCK_SIZE, head_dim)
    return (randn(setting, *shape), randn(setting, *shape)), torch.randperm(num_tokens).to(setting.device)


def experts(rows_each: int, setting: Setting) -> Call:
    """Both products of 128 experts, of which a token has 8, with the sizes of Qwen3-30B-A3B."""
    num_experts, top_k, width, hidden = (4, 2, 64, 96) if setting.small else (128, 8, 2048, 768)
    up, down = randn(setting, num_experts, 2 * hidden, width), randn(setting, num_experts, width, hidden)
    x, between, ends, order = _routed(rows_each, num_experts, top_k, width, hidden, setting)

    def call() -> None:
        moe.grouped_matmul(x, up, None, ends, order, top_k)
        moe.grouped_matmul(between, down, None, ends, None, 1)

    return call


def mxfp4_experts(rows_each: int, setting: Setting) -> Call:
    """Both products of 32 experts, of which a token has 4, with the sizes of GPT-OSS-20b."""
    num_experts, top_k, width, hidden = (4, 2, 64, 96) if setting.small else (32, 4, 2880, 2880)
    up, down = (_stack(num_experts, *shape, setting) for shape in ((2 * hidden, width), (width, hidden)))
    biases = [randn(setting, num_experts, rows) for rows in (2 * hidden, width)]
    x, between, ends, order = _routed(rows_each, num_experts, top_k, width, hidden, setting)

    def call() -> None:
        mxfp4.grouped_matmul(x, up, biases[0], ends, order, top_k)
        mxfp4.grouped_matmul(between, down, biases[1], ends, None, 1)

    return call


def _routed(
    rows_each: int, num_experts: int, top_k: int, width: int, hidden: int, setting: Setting
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of both products for so many rows an expert on average, where the rows of each end, and their tokens."""
    each = min(rows_each, 8) if setting.small else rows_each
    num_rows = each * num_experts // top_k * top_k
    ends = torch.bincount(torch.randint(num_experts, (num_rows,)), minlength=num_experts).cumsum(0)
    order = torch.randperm(num_rows)
    x, between = randn(setting, num_rows // top_k, width), randn(setting, num_rows, hidden)
    return x, between, ends.to(setting.device), order.to(setting.device)


def _stack(num_experts: int, rows: int, columns: int, setting: Setting) -> Mxfp4Stack:
    shape = (num_experts, rows, columns // BLOCK)
    blocks = torch.randint(256, (*shape, BLOCK // 2), dtype=torch.uint8, device=setting.device)
    return Mxfp4Stack(blocks, torch.full(shape, 120, dtype=torch.uint8, device=setting.device))


def sample(vocab_size: int, setting: Setting) -> Call:
    """256 rows with top-k and top-p."""
    return _draw(_logits(vocab_size, setting).mul_(4), 50, setting)


def sample_rarely_flat(vocab_size: int, setting: Setting) -> Call:
    """The same, then 4 rows so flat that top-p reaches below the candidates, and reads them whole."""
    usual, flat = sample(vocab_size, setting), _draw(_logits(vocab_size, setting)[:4].mul_(0.1), 0, setting)

    def call() -> None:
        usual()
        flat()

    return call


def sample_both(vocab_size: int, setting: Setting) -> Call:
    """256 rows drawn among the best tokens, and the same among all, whose masses are summed up too."""
    logits = _logits(vocab_size, setting)
    best, free = _draw(logits, 50, setting), _draw(logits, 0, setting, top_p=1.0)

    def call() -> None:
        best()
        free()

    return call


def _draw(logits: Tensor, top_k: int, setting: Setting, top_p: float = 0.95) -> Call:
    rows, device = len(logits), setting.device
    params = SamplingTensors(
        temperature=torch.ones(rows, device=device),
        top_k=torch.full((rows,), top_k, dtype=torch.int32, device=device),
        top_p=torch.full((rows,), top_p, device=device),
        min_p=torch.zeros(rows, device=device),
        seed=torch.arange(rows, device=device),
        position=torch.arange(rows, device=device),
        greedy=False,
        any_greedy=False,
        uses_top_k=top_k > 0,
        uses_top_p=top_p < 1.0,
        uses_min_p=False,
        max_top_k=top_k,
    )
    return lambda: sampling.sample(logits, params)


def penalties(vocab_size: int, setting: Setting) -> Call:
    """256 rows of which few tokens occurred."""
    logits = _logits(vocab_size, setting)
    prompt = torch.rand(logits.shape, device=setting.device) < 0.01
    counts, ones = prompt.to(torch.int32), torch.ones(len(logits), device=setting.device)
    return lambda: logits_kernels.apply_penalties(logits, counts, prompt, ones, 0 * ones, 0 * ones)


def logprobs(vocab_size: int, setting: Setting) -> Call:
    """256 rows, without the best tokens: torch finds those."""
    logits = _logits(vocab_size, setting)
    ids = torch.arange(len(logits), device=setting.device)
    return lambda: logits_kernels.token_logprobs(logits, ids, 0)


def bitmask(vocab_size: int, setting: Setting) -> Call:
    """256 rows in which half of the tokens are forbidden."""
    logits = _logits(vocab_size, setting)
    mask = torch.randint(-(1 << 31), 1 << 31, (len(logits), -(-logits.shape[1] // 32)), device=setting.device)
    words = mask.to(torch.int32)
    return lambda: bitmask_kernel.apply_bitmask(logits, words, None)


def _logits(vocab_size: int, setting: Setting) -> Tensor:
    return torch.randn((2, 3000) if setting.small else (256, vocab_size), device=setting.device)


def conv(longest: int, setting: Setting) -> Call:
    """The convolution of 64 requests of one token, or of 4 longer ones, with the sizes of Granite 4."""
    channels = 96 if setting.small else 8448
    batch = _states(longest, setting)
    x, weight = randn(setting, batch.num_tokens, channels), randn(setting, channels, 4)
    bias, states = randn(setting, channels), randn(setting, len(batch.slots), channels, 3)
    return lambda: mamba.causal_conv(x, weight, bias, states, batch)


def scan(state_size: int, setting: Setting) -> Call:
    """4 requests of 512 tokens."""
    return _state_space(512, 128, state_size, setting)


def update(state_size: int, setting: Setting) -> Call:
    """64 requests of one token."""
    return _state_space(1, 128, state_size, setting)


def scan_decay(num_heads: int, setting: Setting) -> Call:
    """As `scan`, for a kernel that knows heads alone."""
    return _state_space(512, num_heads, 128, setting)


def _state_space(longest: int, num_heads: int, state_size: int, setting: Setting) -> Call:
    heads, head_dim = (2, 16) if setting.small else (num_heads, 64)
    batch = _states(longest, setting)
    num_tokens = batch.num_tokens
    x = randn(setting, num_tokens, heads, head_dim)
    b, c = (randn(setting, num_tokens, 1, state_size) for _ in range(2))
    dt, a = torch.rand(num_tokens, heads, device=setting.device), -torch.rand(heads, device=setting.device)
    states = torch.zeros(len(batch.slots), heads, head_dim, state_size, device=setting.device)
    return lambda: mamba.state_space_scan(x, dt, a, b, c, a, states, batch)


def _states(longest: int, setting: Setting) -> StateBatch:
    lengths: Sequence[int] = [longest] * (64 if longest == 1 else 4)
    if setting.small:
        lengths = [min(longest, 20)] * 2
    device = setting.device
    known = torch.ones(len(lengths), dtype=torch.bool, device=device)
    return StateBatch(torch.arange(len(lengths), device=device), known, [*lengths])
