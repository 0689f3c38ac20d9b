"""The kernels of latent attention, interpreted, against their definitions in float64."""

import math
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.attention import AttentionBatch, refill
from sirocco.kernels.mla import (
    check_latent_attention,
    latent_attention,
    latent_attention_torch,
    norm_rope_write_latent,
    norm_rope_write_latent_torch,
)
from sirocco.kernels.rope import rope_tables
from sirocco.kernels.triton import mla
from sirocco.kernels.triton.common import Options

from .conftest import Launching

# Half precision rounds queries in the latent space, weights, attended latents and the output.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2}
WRITE_TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
if "SIROCCO_TEST_DEVICE" in os.environ:
    TOLERANCE[torch.bfloat16] = 6e-2  # the interpreter truncates to bfloat16

NOPE, VALUE = 12, 20


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Options]:
    """Small tiles, so that short contexts reach beyond a tile, a step of the loop and a split; tests change them."""
    chosen = {"BLOCK_M": 16, "BLOCK_N": 16, "HOIST": 1, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(mla, "tuned", lambda family, kernel, size: dict(chosen))
    monkeypatch.setattr(mla, "MIN_SPLIT", (32, 32))
    mla.latent_shape.cache_clear()
    yield chosen
    mla.latent_shape.cache_clear()


class Latents:
    """Random contexts in a shuffled cache whose every unused slot is NaN, and queries over them."""

    def __init__(
        self,
        query_lens: list[int],
        kv_lens: list[int],
        num_heads: int = 3,
        rank: int = 48,
        rope_dim: int = 8,
        block_size: int = 8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        blocks = [math.ceil(n / block_size) for n in kv_lens]
        self.cache = torch.full((sum(blocks) + 2, block_size, rank + rope_dim), torch.nan, dtype=dtype)
        free = torch.randperm(len(self.cache)).tolist()
        table = torch.full((len(kv_lens), max(blocks, default=0) + 1), -1, dtype=torch.int32)
        for row, (count, length) in enumerate(zip(blocks, kv_lens, strict=True)):
            table[row, :count] = torch.tensor([free.pop() for _ in range(count)])
            position = torch.arange(length)
            block = table[row].long()[position // block_size]
            self.cache[block, position % block_size] = torch.randn(length, rank + rope_dim).to(dtype)
        starts = torch.tensor([0, *query_lens]).cumsum(0).int()
        self.batch = AttentionBatch(starts, torch.tensor(kv_lens, dtype=torch.int32), table, query_lens, kv_lens)
        self.w_k, self.w_v = ((torch.randn(num_heads, n, rank) / rank**0.5).to(dtype) for n in (NOPE, VALUE))
        # As a part of the fused product of queries and latents.
        fused = torch.randn(sum(query_lens), num_heads * (NOPE + rope_dim) + 5).to(dtype)
        self.q = fused[:, :-5].view(len(fused), num_heads, NOPE + rope_dim)

    def attend(self, batch: AttentionBatch | None = None) -> Tensor:
        return latent_attention(self.q, self.w_k, self.w_v, self.cache, batch or self.batch, 0.2)

    def expected(self) -> Tensor:
        wide = (x.double() for x in (self.q, self.w_k, self.w_v, self.cache))
        return latent_attention_torch(*wide, self.batch, 0.2).to(self.q.dtype)


def check(latents: Latents) -> None:
    tolerance = TOLERANCE[latents.q.dtype]
    assert_close(latents.attend(), latents.expected(), rtol=tolerance, atol=tolerance)


MIXES = {
    "one": ([1], [1]),
    "decodes": ([1, 1, 1, 1], [5, 40, 8, 70]),
    "prompt": ([30], [30]),
    "chunk": ([20], [75]),
    "mixed": ([1, 33, 3, 1], [100, 33, 9, 17]),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_mixes(options: Options, launching: Launching, mix: str, dtype: torch.dtype) -> None:
    merged = ["merge_kernel"] if max(MIXES[mix][1]) > 64 else []
    with launching("latent_attention_kernel", *merged):
        check(Latents(*MIXES[mix], dtype=dtype))


def test_shipped_options() -> None:
    mla.latent_shape.cache_clear()
    check(Latents([1, 5], [40, 20], num_heads=18, rank=64))


@pytest.mark.parametrize("num_heads", [1, 16, 20, 33])
def test_heads_are_dealt_to_tiles(options: Options, num_heads: int) -> None:
    shape = mla.latent_shape(num_heads, torch.float32, torch.device("cpu"))
    assert shape.group <= 16 and shape.group * shape.num_kv_heads >= num_heads
    check(Latents([1, 5], [70, 20], num_heads=num_heads))


def test_tiles_of_prompts_and_decodes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"prefill_32": 64, "decode_32": 16}
    tuned = {"BLOCK_N": 32, "HOIST": 0, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(mla, "tuned", lambda family, kernel, size: tuned | {"BLOCK_M": rows[kernel]})
    monkeypatch.setattr(mla, "MIN_SPLIT", (32, 64))
    mla.latent_shape.cache_clear()
    latents = Latents([1, 12, 2], [75, 40, 18], num_heads=7)
    check(latents)
    mla.latent_shape.cache_clear()
    (work,) = latents.batch.work.values()
    assert [one.rows for one in work] == [63, 14]  # 9 queries of 7 heads, 2 of 7


@pytest.mark.parametrize("rank, rope_dim", [(8, 2), (40, 12), (128, 64), (512, 64)])
def test_latents_of_other_sizes(options: Options, rank: int, rope_dim: int) -> None:
    dtype = torch.float16 if rank > mla.MAX_RANK[4] else torch.float32
    check(Latents([1, 5], [40, 20], rank=rank, rope_dim=rope_dim, dtype=dtype))


@pytest.mark.parametrize("block_size", [24, 64])
def test_block_sizes(options: Options, block_size: int) -> None:
    check(Latents([1, 5], [70, 37], block_size=block_size))


def test_every_length_around_a_block_and_a_split(options: Options) -> None:
    lengths = [1, 7, 8, 9, 16, 17, 32, 33, 64, 65]
    check(Latents([1] * len(lengths), lengths, num_heads=2, rank=16))


def test_rows_of_no_queries_and_padding(options: Options) -> None:
    latents = Latents([1, 0, 2], [20, 9, 5])
    expected = latents.expected()
    latents.q = torch.cat([latents.q, torch.randn(2, *latents.q.shape[1:])])
    out = latents.attend()
    assert_close(out[:3], expected)
    assert not out[3:].any()


def test_no_token_at_all(options: Options) -> None:
    assert Latents([], []).attend().shape == (0, 3, VALUE)


def test_large_scores(options: Options) -> None:
    latents = Latents([1, 6], [70, 30])
    latents.q *= 1e4
    check(latents)


def test_a_static_batch_follows_its_lengths_without_new_launches(options: Options) -> None:
    """What a captured graph replays: the same tensors and grids, other lengths, rows without a request."""
    latents = Latents([1] * 4, [1, 30, 200, 17], num_heads=18)
    expected, source = latents.expected(), latents.batch
    batch = AttentionBatch(source.cu_seqlens_q, source.seq_lens, source.block_table, [1] * 4, [0] * 4, static=True)
    assert not latents.attend(batch).any()
    (work,) = batch.work.values()
    pointers = [(one.items.data_ptr(), one.items.shape, one.merges.shape) for one in work]
    batch.kv_lens[:] = source.kv_lens
    refill(batch)
    assert_close(latents.attend(batch), expected)
    batch.kv_lens[1:] = [0, 200, 0]
    refill(batch)
    out = latents.attend(batch)
    assert_close(out[[0, 2]], expected[[0, 2]])
    assert not out[[1, 3]].any()
    assert pointers == [(one.items.data_ptr(), one.items.shape, one.merges.shape) for one in work]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((513, 64, torch.float16), "kv_lora_rank of 513 in torch.float16: 1 to 512"),
        ((512, 64, torch.float32), "kv_lora_rank of 512 in torch.float32: 1 to 128"),
        ((512, 130, torch.float16), "qk_rope_head_dim of 130"),
        ((64, 64, torch.float64), "float64"),
    ],
)
def test_refusals(arguments: tuple[int, int, torch.dtype], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_latent_attention(*arguments, torch.get_default_device())
    rank, rope_dim, dtype = arguments
    latents = Latents([1], [1], 1, rank, rope_dim, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        latents.attend()


def test_a_cache_of_another_dtype_is_refused() -> None:
    latents = Latents([1], [1])
    latents.cache = latents.cache.half()
    with pytest.raises(ValueError, match=r"contiguous cache of torch\.float32"):
        latents.attend()


@pytest.mark.parametrize("dtype", WRITE_TOLERANCE, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("num_heads, rank, rope_dim, rotary_dim", [(3, 48, 8, 8), (40, 64, 64, 64), (1, 40, 12, 6)])
def test_norm_rope_write(
    launching: Launching,
    dtype: torch.dtype,
    interleaved: bool,
    num_heads: int,
    rank: int,
    rope_dim: int,
    rotary_dim: int,
) -> None:
    num_tokens, size = 4, rank + rope_dim
    q_size = num_heads * (NOPE + rope_dim)
    fused = torch.randn(num_tokens, q_size + size).to(dtype)  # queries and latents as one product leaves them
    weight = torch.randn(rank).to(dtype)
    tables = rope_tables(torch.rand(rotary_dim // 2), torch.arange(num_tokens) * 37)
    slots = torch.tensor([5, -1, 23, 0], dtype=torch.int32)
    cache = torch.full((3, 8, size), torch.nan, dtype=dtype)
    exact, exact_cache = fused.double(), cache.double()

    def parts(product: Tensor) -> tuple[Tensor, Tensor]:
        q, kv = product.split([q_size, size], dim=1)
        return q.view(num_tokens, num_heads, -1), kv

    norm_rope_write_latent_torch(*parts(exact), weight.double(), 1e-6, *tables, interleaved, exact_cache, slots.long())
    kv_before = fused[:, q_size:].clone()
    with launching("norm_rope_write_latent_kernel"):
        norm_rope_write_latent(*parts(fused), weight, 1e-6, *tables, interleaved, cache, slots)
    tolerance = WRITE_TOLERANCE[dtype]
    assert_close(fused, exact.to(dtype), rtol=tolerance, atol=tolerance)
    assert_close(cache, exact_cache.to(dtype), rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(fused[:, q_size:], kv_before)
    assert cache.isnan().all(-1).sum() == 3 * 8 - 3


def test_writing_nothing() -> None:
    table = torch.zeros(0, 4)
    cache = torch.zeros(1, 8, 56)
    slots = torch.zeros(0, dtype=torch.int64)
    norm_rope_write_latent(
        torch.zeros(0, 2, 20), torch.zeros(0, 56), torch.ones(48), 1e-6, table, table, False, cache, slots
    )
    assert not cache.any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kv": torch.zeros(2, 55)}, "do not fit each other"),
        ({"cache": torch.zeros(1, 8, 112)[..., ::2]}, "contiguous cache"),
        ({"slots": torch.zeros(3, dtype=torch.int64)}, "2 tokens need as many"),
        ({"cos": torch.zeros(2, 5)}, "do not fit 2 tokens of 8 dims"),
        ({"q": torch.zeros(2, 3, 20, dtype=torch.float64)}, "float64"),
    ],
)
def test_what_cannot_be_written_is_refused(changes: dict[str, Tensor], message: str) -> None:
    given = {
        "q": torch.zeros(2, 3, 20),
        "kv": torch.zeros(2, 56),
        "cos": torch.zeros(2, 4),
        "cache": torch.zeros(1, 8, 56),
        "slots": torch.zeros(2, dtype=torch.int64),
    } | changes
    table = given["cos"]
    with pytest.raises(ValueError, match=message):
        norm_rope_write_latent(
            given["q"], given["kv"], torch.ones(48), 1e-6, table, table, False, given["cache"], given["slots"]
        )
