"""What `sirocco bench kernels` measures: each operator at the sizes of an 8B model, with the bytes and operations that
it cannot avoid, and other implementations of the same numbers.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sirocco.kernels import activation, kv, mla, norm, sampling
from sirocco.kernels.attention import AttentionBatch, paged_attention, paged_attention_torch
from sirocco.kernels.bidirectional import bidirectional_attention, bidirectional_attention_torch
from sirocco.kernels.sampling import SamplingTensors

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
WIDTH, HIDDEN, VOCAB_SIZE = 4096, 12288, 151936

Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a case runs. `small` is for checking the numbers, and for machines without a GPU."""

    device: torch.device
    dtype: torch.dtype
    small: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """A case made ready: what to time, what it should return, and what it costs at least."""

    run: Run
    exact: Run  # in float64
    num_bytes: int
    flops: int = 0
    peers: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """An operator at one size."""

    operator: str
    size: str
    make: Callable[[Setting], Trial]


def attention(
    query_lens: list[int], kv_lens: list[int], small: tuple[list[int], list[int]]
) -> Callable[[Setting], Trial]:
    """Paged attention over these lengths. `small` are those to check with."""

    def make(setting: Setting) -> Trial:
        queries, keys = small if setting.small else (query_lens, kv_lens)
        heads, kv_heads = (4, 2) if setting.small else (NUM_HEADS, NUM_KV_HEADS)
        layout, num_blocks = paged_layout(queries, keys, setting.device)
        shape = (num_blocks, kv_heads, BLOCK_SIZE, HEAD_DIM)
        q = randn(setting, sum(queries), heads, HEAD_DIM)
        k_cache, v_cache = randn(setting, *shape), randn(setting, *shape)
        scale = HEAD_DIM**-0.5
        seen = sum(n * length - n * (n - 1) // 2 for n, length in zip(queries, keys, strict=True))
        return Trial(
            run=lambda: paged_attention(q, k_cache, v_cache, layout, scale),
            exact=lambda: paged_attention_torch(q.double(), k_cache.double(), v_cache.double(), layout, scale),
            num_bytes=(2 * sum(keys) * kv_heads * HEAD_DIM + 2 * q.numel()) * q.element_size(),
            flops=4 * seen * heads * HEAD_DIM,
            peers=_attention_peers(q, kv_heads, queries, keys, setting),
        )

    return make


def latent_attention(
    num_heads: int, query_lens: list[int], kv_lens: list[int], small: tuple[list[int], list[int]]
) -> Callable[[Setting], Trial]:
    """Latent attention with the sizes of DeepSeek's models over these lengths. `small` are those to check with."""

    def make(setting: Setting) -> Trial:
        queries, keys = small if setting.small else (query_lens, kv_lens)
        heads, rank = (3, 64) if setting.small else (num_heads, 512)
        head_dim, rope_dim = 128, 64
        layout, num_blocks = paged_layout(queries, keys, setting.device)
        q = randn(setting, sum(queries), heads, head_dim + rope_dim)
        w_k, w_v = (randn(setting, heads, head_dim, rank) / rank**0.5 for _ in range(2))
        cache = randn(setting, num_blocks, BLOCK_SIZE, rank + rope_dim)
        scale = (head_dim + rope_dim) ** -0.5
        seen = sum(n * length - n * (n - 1) // 2 for n, length in zip(queries, keys, strict=True))
        num_read = sum(keys) * (rank + rope_dim) + w_k.numel() + w_v.numel() + q.numel()
        return Trial(
            run=lambda: mla.latent_attention(q, w_k, w_v, cache, layout, scale),
            exact=lambda: mla.latent_attention_torch(
                q.double(), w_k.double(), w_v.double(), cache.double(), layout, scale
            ),
            num_bytes=(num_read + sum(queries) * heads * head_dim) * q.element_size(),
            flops=2 * heads * (seen * (2 * rank + rope_dim) + 2 * sum(queries) * head_dim * rank),
        )

    return make


def encode(setting: Setting) -> Trial:
    """Attention of 64 sequences of 512 tokens to themselves, with BERT's 12 heads of 64 dims."""
    lengths, heads, head_dim = ([40, 7], 2, 64) if setting.small else ([512] * 64, 12, 64)
    q, k, v = randn(setting, sum(lengths), 3 * heads, head_dim).split(heads, 1)
    layout, _ = paged_layout(lengths, lengths, setting.device)
    scale = head_dim**-0.5
    return Trial(
        run=lambda: bidirectional_attention(q, k, v, layout, scale),
        exact=lambda: bidirectional_attention_torch(q.double(), k.double(), v.double(), layout, scale, None, None),
        num_bytes=4 * q.numel() * q.element_size(),
        flops=4 * sum(length**2 for length in lengths) * heads * head_dim,
        peers={"torch": lambda: bidirectional_attention_torch(q, k, v, layout, scale, None, None)},
    )


def paged_layout(query_lens: list[int], kv_lens: list[int], device: torch.device) -> tuple[AttentionBatch, int]:
    """Shuffled blocks, as a busy engine has them; block 0 is nobody's."""
    counts = [-(-length // BLOCK_SIZE) for length in kv_lens]
    blocks = torch.randperm(sum(counts)) + 1
    table = torch.zeros(len(kv_lens), max(counts), dtype=torch.int32)
    for row, own in enumerate(blocks.split(counts)):
        table[row, : len(own)] = own
    layout = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).to(device, torch.int32),
        seq_lens=torch.tensor(kv_lens, dtype=torch.int32).to(device),
        block_table=table.to(device),
        query_lens=query_lens,
        kv_lens=kv_lens,
    )
    return layout, sum(counts) + 1


def _attention_peers(
    q: Tensor, num_kv_heads: int, query_lens: list[int], kv_lens: list[int], setting: Setting
) -> dict[str, Run]:
    """torch's own attention over contiguous keys, where all requests are alike and either decode or begin."""
    decode = set(query_lens) == {1}
    if len(set(kv_lens)) > 1 or not (decode or query_lens == kv_lens):
        return {}
    batch, length = len(kv_lens), kv_lens[0]
    queries = q.view(batch, -1, *q.shape[1:]).transpose(1, 2).contiguous()  # [B, H, T, D]
    keys, values = (randn(setting, batch, num_kv_heads, length, HEAD_DIM) for _ in range(2))

    def sdpa(backend: SDPBackend) -> Run:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(queries, keys, values, is_causal=not decode, enable_gqa=True)

        return run

    peers = {"SDPA": sdpa(SDPBackend.MATH)} if setting.device.type == "cpu" else {}
    if setting.device.type == "cuda":
        peers["SDPA flash"] = sdpa(SDPBackend.FLASH_ATTENTION)
        peers["SDPA cuDNN"] = sdpa(SDPBackend.CUDNN_ATTENTION)
        peers["FlexAttention"] = _flex(queries, keys, values, causal=not decode)
        if importlib.util.find_spec("flash_attn") is not None:
            peers["flash-attn"] = _flash_attn(queries, keys, values, causal=not decode)
    return peers


def _flash_attn(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Run:
    """flash-attn over contiguous keys; `sirocco bench tune` times it as an engine calls it."""
    from flash_attn import flash_attn_func

    by_token = [x.transpose(1, 2).contiguous() for x in (queries, keys, values)]

    def run() -> Tensor:
        out: Tensor = flash_attn_func(*by_token, causal=causal)
        return out

    return run


def _flex(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Run:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # after a few shapes it would be compiled for any, and then not at all
    compiled = torch.compile(flex_attention)
    length = keys.shape[2]
    mask = None
    if causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=str(keys.device))

    def run() -> Tensor:
        out: Tensor = compiled(queries, keys, values, block_mask=mask, enable_gqa=True)
        return out

    return run


def add_rms_norm(setting: Setting) -> Trial:
    """Residual addition and norm of 16k tokens."""
    num_tokens, width = (5, 200) if setting.small else (16384, WIDTH)
    x, residual = randn(setting, num_tokens, width), randn(setting, num_tokens, width)
    weight = 1 + randn(setting, width) / 8

    def plain() -> Tensor:
        return F.rms_norm(residual + x, (width,), weight, 1e-6)

    return Trial(
        run=lambda: norm.add_rms_norm(x, residual, weight, 1e-6)[0],
        exact=lambda: F.rms_norm((residual + x).double(), (width,), weight.double(), 1e-6),
        num_bytes=4 * x.nbytes,
        peers={"torch": plain} | ({"compiled": torch.compile(plain)} if setting.device.type == "cuda" else {}),
    )


def swiglu(setting: Setting) -> Trial:
    """The activation between the products of 8k tokens."""
    num_tokens, hidden = (5, 300) if setting.small else (8192, HIDDEN)
    x = randn(setting, num_tokens, 2 * hidden)

    def plain(x: Tensor = x) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    return Trial(
        run=lambda: activation.swiglu(x),
        exact=lambda: plain(x.double()),
        num_bytes=x.nbytes * 3 // 2,
        peers={"torch": plain},
    )


def norm_rope_write(setting: Setting) -> Trial:
    """Norms of q and k, rotary embedding and cache write of 8k tokens."""
    num_tokens, heads, kv_heads = (5, 4, 2) if setting.small else (8192, NUM_HEADS, NUM_KV_HEADS)
    qkv = randn(setting, num_tokens, (heads + 2 * kv_heads) * HEAD_DIM)
    q_weight, k_weight = (1 + randn(setting, HEAD_DIM) / 8 for _ in range(2))
    angles = torch.rand(num_tokens, HEAD_DIM // 2, device=setting.device) * 6
    shape = (-(-num_tokens // BLOCK_SIZE) + 1, kv_heads, BLOCK_SIZE, HEAD_DIM)
    k_cache, v_cache = (torch.zeros(shape, dtype=setting.dtype, device=setting.device) for _ in range(2))
    slots = BLOCK_SIZE + torch.randperm(num_tokens, device=setting.device)

    cos, sin = angles.cos(), angles.sin()

    def run() -> Tensor:
        return kv.norm_rope_write(
            qkv, q_weight, k_weight, 1e-6, cos, sin, False, k_cache, v_cache, slots, heads, kv_heads
        )

    def exact() -> Tensor:
        q = qkv.double().view(num_tokens, -1, HEAD_DIM)[:, :heads]
        q = F.rms_norm(q, (HEAD_DIM,), q_weight.double(), 1e-6)
        first, second = q.chunk(2, -1)
        wide_cos, wide_sin = cos.double()[:, None], sin.double()[:, None]
        return torch.cat([first * wide_cos - second * wide_sin, second * wide_cos + first * wide_sin], -1)

    return Trial(run=run, exact=exact, num_bytes=2 * qkv.nbytes + cos.nbytes + sin.nbytes)


def sample(filtered: bool) -> Callable[[Setting], Trial]:
    """A draw for 256 rows of a 152k vocabulary, with top-k and top-p or without."""

    def make(setting: Setting) -> Trial:
        num_rows, vocab_size = (3, 999) if setting.small else (256, VOCAB_SIZE)
        logits = 4 * torch.randn(num_rows, vocab_size, device=setting.device)
        top_k, top_p = (50, 0.95) if filtered else (0, 1.0)

        def params(device: torch.device) -> SamplingTensors:
            return SamplingTensors(
                temperature=torch.full((num_rows,), 0.8, device=device),
                top_k=torch.full((num_rows,), top_k, dtype=torch.int32, device=device),
                top_p=torch.full((num_rows,), top_p, device=device),
                min_p=torch.zeros(num_rows, device=device),
                seed=torch.arange(num_rows, device=device),
                position=torch.arange(num_rows, device=device) + 7,
                greedy=False,
                any_greedy=False,
                uses_top_k=filtered,
                uses_top_p=filtered,
                uses_min_p=False,
                max_top_k=top_k,
            )

        here, host = params(setting.device), params(torch.device("cpu"))
        return Trial(
            run=lambda: sampling.sample(logits, here),
            exact=lambda: sampling.sample_torch(logits.cpu(), host).to(setting.device).double(),
            num_bytes=logits.nbytes,
            peers={"softmax": lambda: logits.softmax(-1)},
        )

    return make


def randn(setting: Setting, *shape: int) -> Tensor:
    """Normal numbers where and as the setting has them."""
    return torch.randn(shape, device=setting.device, dtype=setting.dtype)


DECODE = ([1, 1, 1], [40, 150, 33])
CASES = (
    Case("decode", "32 x 4k", attention([1] * 32, [4096] * 32, DECODE)),
    Case("decode", "8 x 32k", attention([1] * 8, [32768] * 8, DECODE)),
    Case("decode", "1 x 128k + 31 x 4k", attention([1] * 32, [131072] + [4096] * 31, DECODE)),
    Case("decode", "1 x 1k", attention([1], [1024], ([1], [70]))),
    Case("prefill", "1 x 1k", attention([1024], [1024], ([40], [40]))),
    Case("prefill", "1 x 8k", attention([8192], [8192], ([50], [50]))),
    Case("prefill", "2k on 32k", attention([2048], [32768], ([20], [90]))),
    Case("mixed", "2k + 63 x 4k", attention([2048] + [1] * 63, [2048] + [4096] * 63, ([20, 1, 1], [30, 9, 70]))),
    Case("latent", "16 heads, decode 32 x 4k", latent_attention(16, [1] * 32, [4096] * 32, DECODE)),
    Case("latent", "128 heads, decode 32 x 4k", latent_attention(128, [1] * 32, [4096] * 32, DECODE)),
    Case("latent", "128 heads, 1k on 8k", latent_attention(128, [1024], [8192], ([20], [90]))),
    Case("encode", "64 x 512", encode),
    Case("add_rms_norm", "16k x 4096", add_rms_norm),
    Case("swiglu", "8k x 12288", swiglu),
    Case("norm_rope_write", "8k x 48 x 128", norm_rope_write),
    Case("sample", "256 x 152k, no filter", sample(filtered=False)),
    Case("sample", "256 x 152k, top-k, top-p", sample(filtered=True)),
)
OPERATORS = tuple(dict.fromkeys(case.operator for case in CASES))
