"""The calls that an engine makes, on tensors without data: what warm-up and the ahead-of-time compiler go through."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.mamba import StateBatch
from sirocco.kernels.mxfp4 import BLOCK, Mxfp4Stack
from sirocco.kernels.sampling import SamplingTensors
from sirocco.kernels.triton import (
    activation,
    attention,
    bidirectional,
    bitmask,
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
from sirocco.kernels.triton import logits as logits_kernels

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of a model and of its cache that kernels are compiled for; see `sirocco.runtime.models.spec`."""

    width: int = 4096
    intermediate: int = 12288
    vocab_size: int = 151936
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    rotary_dim: int = 128
    block_size: int = 16
    num_blocks: int = 1024  # AMD's compiler distinguishes tensors beyond 2 GiB
    qk_norm: bool = True
    interleaved: bool = False
    layer_norm: bool = False
    activation: str = "silu"
    gated: bool = True
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.bfloat16
    cache_dtype: torch.dtype = torch.bfloat16
    logits_dtype: torch.dtype = torch.bfloat16


def norm_calls(d: Dims, num_tokens: int = 32) -> Iterator[Call]:
    """Norms, alone and after adding to the residual stream."""
    x, residual = _empty(num_tokens, d.width, dtype=d.dtype), _empty(num_tokens, d.width, dtype=d.dtype)
    weight = _empty(d.width, dtype=d.dtype)
    if d.layer_norm:
        yield lambda: norm.layer_norm(x, weight, weight, 1e-5)
        yield lambda: norm.add_layer_norm(x, residual, weight, weight, 1e-5)
    else:
        yield lambda: norm.rms_norm(x, weight, 1e-5)
        yield lambda: norm.add_rms_norm(x, residual, weight, 1e-5)


def activation_calls(d: Dims, num_tokens: int = 32) -> Iterator[Call]:
    """What stands between the products of an MLP."""
    hidden = _empty(num_tokens, d.intermediate * (2 if d.gated else 1), dtype=d.dtype)
    activate = activation.gated if d.gated else activation.unary
    yield lambda: activate(hidden, d.activation)


def cache_calls(d: Dims, num_tokens: int = 32) -> Iterator[Call]:
    """Norm and rotary embedding of heads, and the writes to the cache."""
    heads = d.num_heads + 2 * d.num_kv_heads
    qkv = _empty(num_tokens, heads * d.head_dim, dtype=d.dtype)
    per_head = _empty(d.head_dim, dtype=d.dtype) if d.qk_norm else None
    tables = [_empty(num_tokens, d.rotary_dim // 2, dtype=torch.float32) for _ in range(2)]
    cos, sin = tables if d.rotary_dim else (None, None)
    caches = _caches(d)
    slots = _empty(num_tokens, dtype=torch.int64)
    counts = d.num_heads, d.num_kv_heads
    yield lambda: kv.norm_rope_write(qkv, per_head, per_head, 1e-6, cos, sin, d.interleaved, *caches, slots, *counts)
    q, k, v = qkv.view(num_tokens, heads, d.head_dim).split([d.num_heads, d.num_kv_heads, d.num_kv_heads], 1)
    yield lambda: kv.write_kv(k, v, *caches, slots)
    if cos is not None and sin is not None:
        yield lambda: rope.rotate(q, cos, sin, d.interleaved)


def attention_calls(d: Dims, num_tokens: int = 300) -> Iterator[Call]:
    """A decode beside a chunk, both over a context long enough to be split."""
    q, caches = _empty(num_tokens, d.num_heads, d.head_dim, dtype=d.dtype), _caches(d)
    table = _empty(2, 320, dtype=torch.int32)
    lengths = _empty(3, dtype=torch.int32), _empty(2, dtype=torch.int32)

    def call() -> Tensor:
        attention.work_shape.cache_clear()  # which does not know of configurations
        batch = AttentionBatch(*lengths, table, [1, num_tokens - 1], [5000, 5000])
        return attention.paged_attention(q, *caches, batch, d.head_dim**-0.5, d.window, d.softcap, None)

    yield call


def model_calls(d: Dims, num_tokens: int = 32) -> Iterator[Call]:
    """The operators of a layer but attention, and the embedding, each once."""
    yield from norm_calls(d, num_tokens)
    yield from activation_calls(d, num_tokens)
    yield from cache_calls(d, num_tokens)
    ids, table = _empty(num_tokens, dtype=torch.int64), _empty(d.vocab_size, d.width, dtype=d.dtype)
    yield lambda: embedding.embedding(ids, table)


def expert_calls(d: Dims, num_rows: int, num_experts: int = 128, top_k: int = 8) -> Iterator[Call]:
    """The two products of a mixture of experts, over the rows of all experts together."""
    up = _empty(num_experts, 2 * d.intermediate, d.width, dtype=d.dtype)
    down = _empty(num_experts, d.width, d.intermediate, dtype=d.dtype)
    bias = _empty(num_experts, d.width, dtype=d.dtype)
    ends, order = _empty(num_experts, dtype=torch.int64), _empty(num_rows, dtype=torch.int64)
    x, hidden = _empty(num_rows // top_k, d.width, dtype=d.dtype), _empty(num_rows, d.intermediate, dtype=d.dtype)
    yield lambda: moe.grouped_matmul(x, up, None, ends, order, top_k)
    yield lambda: moe.grouped_matmul(hidden, down, bias, ends, None, 1)


def mxfp4_calls(d: Dims, num_rows: int, num_experts: int = 128, top_k: int = 4) -> Iterator[Call]:
    """The two products of a mixture of experts in MXFP4, and the clamped activation between."""
    up = _mxfp4_stack(num_experts, 2 * d.intermediate, d.width)
    down = _mxfp4_stack(num_experts, d.width, d.intermediate)
    biases = [_empty(num_experts, rows, dtype=d.dtype) for rows in (2 * d.intermediate, d.width)]
    ends, order = _empty(num_experts, dtype=torch.int64), _empty(num_rows, dtype=torch.int64)
    x, hidden = _empty(num_rows // top_k, d.width, dtype=d.dtype), _empty(num_rows, 2 * d.intermediate, dtype=d.dtype)
    yield lambda: mxfp4.grouped_matmul(x, up, biases[0], ends, order, top_k)
    yield lambda: activation.clamped_swiglu(hidden, 1.702, 7.0)
    yield lambda: mxfp4.grouped_matmul(hidden[:, : d.intermediate].contiguous(), down, biases[1], ends, None, 1)


@dataclass(frozen=True, slots=True)
class MambaDims:
    """The sizes of a Mamba-2 mixer, see `sirocco.runtime.models.spec`."""

    num_heads: int = 128
    head_dim: int = 64
    state_size: int = 128
    num_groups: int = 1
    conv_width: int = 4
    dtype: torch.dtype = torch.bfloat16


def mamba_calls(d: MambaDims, query_lens: Sequence[int] = (1, 299)) -> Iterator[Call]:
    """Convolution, scan and norm of a step; a single token and several are each other's kernels."""
    num_tokens, inner, shared = sum(query_lens), d.num_heads * d.head_dim, d.num_groups * d.state_size
    known = _empty(len(query_lens), dtype=torch.bool)
    batch = StateBatch(_empty(len(query_lens), dtype=torch.int64), known, list(query_lens))
    channels = inner + 2 * shared
    gate, convolved, _ = _empty(num_tokens, inner + channels + d.num_heads, dtype=d.dtype).split(
        [inner, channels, d.num_heads], dim=-1
    )
    filters, conv_bias = _empty(channels, d.conv_width, dtype=d.dtype), _empty(channels, dtype=d.dtype)
    conv_states = _empty(8, channels, d.conv_width - 1, dtype=d.dtype)
    yield lambda: mamba.causal_conv(convolved, filters, conv_bias, conv_states, batch)
    parts = _empty(num_tokens, channels, dtype=d.dtype).split([inner, shared, shared], dim=-1)
    sizes = (d.num_heads, d.head_dim), (d.num_groups, d.state_size), (d.num_groups, d.state_size)
    x, b, c = (part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True))
    dt, per_head = _empty(num_tokens, d.num_heads, dtype=torch.float32), _empty(d.num_heads, dtype=torch.float32)
    states = _empty(8, d.num_heads, d.head_dim, d.state_size, dtype=torch.float32)
    yield lambda: mamba.state_space_scan(x, dt, per_head, b, c, per_head, states, batch)
    y, weight = _empty(num_tokens, inner, dtype=d.dtype), _empty(inner, dtype=d.dtype)
    yield lambda: norm.gated_rms_norm(y, gate, weight, 1e-5, d.num_groups)


@dataclass(frozen=True, slots=True)
class LatentDims:
    """The sizes of latent attention and of its cache."""

    num_heads: int = 128
    rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    value_dim: int = 128
    interleaved: bool = True
    block_size: int = 16
    num_blocks: int = 1024
    dtype: torch.dtype = torch.bfloat16


def latent_calls(d: LatentDims, query_lens: Sequence[int] = (1, 299)) -> Iterator[Call]:
    """The write of latents, and attention of so many queries to contexts long enough to be split."""
    num_tokens, size = sum(query_lens), d.rank + d.rope_dim
    q = _empty(num_tokens, d.num_heads, d.nope_dim + d.rope_dim, dtype=d.dtype)
    kv, weight = _empty(num_tokens, size, dtype=d.dtype), _empty(d.rank, dtype=d.dtype)
    angles = _empty(num_tokens, d.rope_dim // 2, dtype=torch.float32)
    cache = _empty(d.num_blocks, d.block_size, size, dtype=d.dtype)
    slots = _empty(num_tokens, dtype=torch.int64)
    yield lambda: mla.norm_rope_write_latent(q, kv, weight, 1e-6, angles, angles, d.interleaved, cache, slots)
    w_k, w_v = (_empty(d.num_heads, n, d.rank, dtype=d.dtype) for n in (d.nope_dim, d.value_dim))

    def call() -> Tensor:
        mla.latent_shape.cache_clear()  # which does not know of configurations
        batch = _batch(query_lens, [5000] * len(query_lens))
        return mla.latent_attention(q, w_k, w_v, cache, batch, 0.1)

    yield call


def bidirectional_calls(d: Dims, reach: int | None = None, num_tokens: int = 300) -> Iterator[Call]:
    """Attention of a sequence to itself, with biases for distances up to `reach`."""
    heads = d.num_heads + 2 * d.num_kv_heads
    qkv = _empty(num_tokens, heads, d.head_dim, dtype=d.dtype)
    q, k, v = qkv.split([d.num_heads, d.num_kv_heads, d.num_kv_heads], 1)
    bias = None if reach is None else _empty(d.num_heads, 2 * reach + 1, dtype=d.dtype)

    def call() -> Tensor:
        return bidirectional.bidirectional_attention(q, k, v, _batch([num_tokens], [num_tokens]), 0.1, d.window, bias)

    yield call


def sampling_calls(dims: Dims, num_rows: int = 8, first: int = 0) -> Iterator[Call]:
    """Draws with and without filters, penalties, masks of grammars; values of rows begin at `first` of a tensor."""
    logits = _empty(num_rows, dims.vocab_size, dtype=dims.logits_dtype)
    column = _empty(first + num_rows, dtype=torch.float32)[first:]
    whole = _empty(first + num_rows, dtype=torch.int64)[first:]
    free = SamplingTensors(
        temperature=column,
        top_k=_empty(first + num_rows, dtype=torch.int32)[first:],
        top_p=column,
        min_p=column,
        seed=whole,
        position=whole,
        greedy=False,
        any_greedy=False,
        uses_top_k=False,
        uses_top_p=False,
        uses_min_p=False,
        max_top_k=0,
    )
    for params in (replace(free, greedy=True), replace(free, uses_min_p=True), replace(free, uses_top_k=True)):
        yield lambda params=params: sampling.sample(logits, params)  # type: ignore[misc]
    counts = _empty(num_rows, dims.vocab_size, dtype=torch.int32)
    prompt = _empty(num_rows, dims.vocab_size, dtype=torch.bool)
    yield lambda: logits_kernels.apply_penalties(logits, counts, prompt, column, column, column)
    yield lambda: logits_kernels.token_logprobs(logits, whole, 20)
    mask = _empty(num_rows, -(-dims.vocab_size // 32), dtype=torch.int32)
    yield lambda: bitmask.apply_bitmask(logits, mask, None)
    yield lambda: bitmask.apply_bitmask(logits, mask, whole)


def calls(dims: Dims) -> Iterator[Call]:
    """All of the above."""
    yield from model_calls(dims)
    yield from attention_calls(dims)
    yield from sampling_calls(dims)


def shipped_calls() -> Iterator[Call]:
    """Calls that reach every kernel and every bucket of the configurations, in bfloat16."""
    large = Dims()
    small = replace(large, width=512, intermediate=512, head_dim=64, rotary_dim=64, interleaved=True, qk_norm=False)
    yield from calls(large)
    yield from model_calls(replace(small, layer_norm=True, gated=False, activation="gelu_tanh"))
    yield from attention_calls(small)
    yield from cache_calls(replace(large, head_dim=256, rotary_dim=256))
    for head_dim in (96, 256):
        yield from attention_calls(replace(large, head_dim=head_dim))
    for num_rows in (64, 8192):  # of 128 experts
        yield from expert_calls(replace(large, width=2048, intermediate=768), num_rows)
        yield from mxfp4_calls(replace(large, width=2880, intermediate=2880), num_rows)
    yield from mamba_calls(MambaDims())
    yield from mamba_calls(MambaDims(num_heads=24, state_size=256), [1, 3])
    yield from mamba_calls(MambaDims(num_heads=24), [1])
    yield from latent_calls(LatentDims(), [1])  # a decode's tiles are a chunk's where the heads fill them
    yield from latent_calls(LatentDims(num_heads=16, interleaved=False), [1])
    yield from bidirectional_calls(small, reach=128)
    yield from bidirectional_calls(replace(small, head_dim=128))
    yield from bidirectional_calls(replace(large, head_dim=256, window=257))
    for width in (64, 1024, 8192, 16384):
        _, add = norm_calls(replace(large, width=width))  # which does all that the other does
        yield add


def further_calls() -> Iterator[Call]:
    """Other dtypes, activations, head dims, widths and vocabularies."""
    large = Dims()
    for dtype in (torch.float16, torch.float32):
        yield from calls(replace(large, dtype=dtype, cache_dtype=dtype, logits_dtype=dtype))
        for head_dim in (64, 256):
            yield from attention_calls(replace(large, head_dim=head_dim, dtype=dtype, cache_dtype=dtype))
        for width in (64, 512, 1024, 8192, 16384):
            yield from norm_calls(replace(large, width=width, dtype=dtype, layer_norm=True))
        yield from mxfp4_calls(replace(large, width=2880, intermediate=2880, dtype=dtype), 64)
        for state_size in (64, 256):
            yield from mamba_calls(MambaDims(state_size=state_size, dtype=dtype))
    for kind in activation.KINDS:
        yield from activation_calls(replace(large, activation=kind, gated=kind in ("gelu", "gelu_tanh")))
    for head_dim, rotary_dim in ((80, 32), (96, 96), (128, 64), (128, 0)):
        for interleaved in (False, True):
            yield from cache_calls(replace(large, head_dim=head_dim, rotary_dim=rotary_dim, interleaved=interleaved))
        yield from attention_calls(replace(large, head_dim=head_dim, window=4096, softcap=50.0))
    for dtype in (torch.float16, torch.float32):
        for num_heads in (16, 20, 128):
            for rank in (128, 512) if dtype.itemsize == 2 else (128,):
                yield from latent_calls(LatentDims(num_heads=num_heads, rank=rank, dtype=dtype))
        for head_dim in (32, 64, 80, 128):  # and 256, of which some 80 bytes spill in float32 on NVIDIA
            for window, reach in ((None, None), (257, None), (None, 128)):
                yield from bidirectional_calls(replace(large, head_dim=head_dim, window=window, dtype=dtype), reach)
    for vocab_size in (512, 50257, 262144):
        yield from sampling_calls(replace(large, vocab_size=vocab_size, logits_dtype=torch.float32))


def _caches(d: Dims) -> tuple[Tensor, Tensor]:
    shape = d.num_blocks, d.num_kv_heads, d.block_size, d.head_dim
    return _empty(*shape, dtype=d.cache_dtype), _empty(*shape, dtype=d.cache_dtype)


def _batch(query_lens: Sequence[int], kv_lens: Sequence[int]) -> AttentionBatch:
    count = len(query_lens)
    starts, lengths = _empty(count + 1, dtype=torch.int32), _empty(count, dtype=torch.int32)
    return AttentionBatch(starts, lengths, _empty(count, 320, dtype=torch.int32), [*query_lens], [*kv_lens])


def _mxfp4_stack(num_experts: int, rows: int, columns: int) -> Mxfp4Stack:
    groups = columns // BLOCK
    blocks = _empty(num_experts, rows, groups, BLOCK // 2, dtype=torch.uint8)
    return Mxfp4Stack(blocks, _empty(num_experts, rows, groups, dtype=torch.uint8))


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
