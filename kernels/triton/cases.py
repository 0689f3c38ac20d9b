"""The calls that an engine makes, on tensors without data: what warm-up and the ahead-of-time compiler go through."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.sampling import SamplingTensors
from sirocco.kernels.triton import activation, attention, bitmask, embedding, kv, moe, norm, rope, sampling
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
    for params in (replace(free, greedy=True), free, replace(free, uses_top_k=True)):
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
    yield from attention_calls(replace(large, head_dim=256))
    for num_rows in (64, 8192):  # of 128 experts
        yield from expert_calls(replace(large, width=2048, intermediate=768), num_rows)
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
    for kind in activation.KINDS:
        yield from activation_calls(replace(large, activation=kind, gated=kind in ("gelu", "gelu_tanh")))
    for head_dim, rotary_dim in ((80, 32), (96, 96), (128, 64), (128, 0)):
        for interleaved in (False, True):
            yield from cache_calls(replace(large, head_dim=head_dim, rotary_dim=rotary_dim, interleaved=interleaved))
        yield from attention_calls(replace(large, head_dim=head_dim, window=4096, softcap=50.0))
    for vocab_size in (512, 50257, 262144):
        yield from sampling_calls(replace(large, vocab_size=vocab_size, logits_dtype=torch.float32))


def _caches(d: Dims) -> tuple[Tensor, Tensor]:
    shape = d.num_blocks, d.num_kv_heads, d.block_size, d.head_dim
    return _empty(*shape, dtype=d.cache_dtype), _empty(*shape, dtype=d.cache_dtype)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
