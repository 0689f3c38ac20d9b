"""The attention kernels, interpreted, against float64: one query and one head at a time."""

import dataclasses
import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sirocco.kernels.attention import AttentionBatch, check_attention, paged_attention, refill
from sirocco.kernels.triton import attention, attention_work, common
from sirocco.kernels.triton.attention_work import DECODE, ITEM, PREFILL, WorkShape, cut, split

from ..test_attention import MIXES, Paged, reference

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3}  # half precision rounds the weights and the output
if "SIROCCO_TEST_DEVICE" in os.environ:
    TOLERANCE[torch.bfloat16] = 3e-2  # the interpreter truncates to bfloat16


@pytest.fixture
def options(monkeypatch):
    """Small tiles, so that short contexts reach beyond a tile, a step of the loop and a split; tests change them."""
    chosen = {"BLOCK_M": 16, "BLOCK_N": 16, "DESCRIPTORS": 0, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(attention, "tuned", lambda family, kernel, size: dict(chosen))
    monkeypatch.setattr(attention_work, "MIN_SPLIT", (32, 32))
    attention.work_shape.cache_clear()
    yield chosen
    attention.work_shape.cache_clear()


def check(
    query_lens,
    kv_lens,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    block_size=16,
    dtype=torch.float32,
    window=None,
    softcap=None,
    with_sinks=False,
):
    paged = Paged(query_lens, kv_lens, num_kv_heads, head_dim, block_size, dtype)
    q = torch.randn(sum(query_lens), 2 * num_heads, head_dim).to(dtype)[:, :num_heads]
    sinks = torch.randn(num_heads).to(dtype) if with_sinks else None
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, head_dim**-0.5, window, softcap, sinks)
    expected = reference(q, paged, head_dim**-0.5, window, softcap, sinks)
    assert out.dtype == dtype
    assert_close(out, expected.to(dtype), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_mixes(options, mix, dtype):
    before = common.launches()
    check(*MIXES[mix], dtype=dtype)
    after = common.launches()
    assert after["attention_kernel"] > before.get("attention_kernel", 0)
    if max(MIXES[mix][1]) > 64:
        assert after["merge_kernel"] > before.get("merge_kernel", 0)


def test_shipped_options():
    check([1, 7, 1], [40, 70, 300])


@pytest.mark.parametrize("head_dim", [16, 24, 72, 80, 96, 112, 128, 192, 256])
def test_head_dims(options, head_dim):
    check([1, 5], [70, 20], head_dim=head_dim, num_heads=2, num_kv_heads=1)


@pytest.mark.parametrize("block_size", [8, 32, 64])
def test_block_sizes(options, block_size):
    check([1, 5], [70, 37], block_size=block_size)


@pytest.mark.parametrize("num_heads, num_kv_heads", [(1, 1), (3, 3), (6, 2), (5, 1), (20, 1)])
def test_grouped_heads(options, num_heads, num_kv_heads):
    check([1, 9, 2], [40, 20, 16], num_heads=num_heads, num_kv_heads=num_kv_heads)


@pytest.mark.parametrize("window", [1, 15, 16, 17, 40, 1000])
def test_window(options, window):
    check([1, 20, 2], [90, 53, 18], window=window, num_heads=2, num_kv_heads=1)


@pytest.mark.parametrize("softcap", [None, 0.5, 20.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 18])
def test_softcap_and_sinks(options, softcap, with_sinks, window):
    check([1, 5], [70, 21], num_heads=3, num_kv_heads=1, softcap=softcap, with_sinks=with_sinks, window=window)


def test_every_length_around_a_block_and_a_split(options):
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65]
    check([1] * len(lengths), lengths, num_heads=2, num_kv_heads=1, head_dim=16, block_size=8)


@pytest.mark.parametrize("keys", [16, 32, 64])
def test_loop_steps_and_cache_blocks_of_unlike_sizes(options, keys):
    options["BLOCK_N"] = keys
    check([1, 20], [75, 33], num_heads=2, num_kv_heads=1, block_size=32, window=30)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("head_dim", [64, 24])
def test_descriptors(options, window, head_dim):
    options["DESCRIPTORS"] = 1
    check([1, 20], [75, 33], num_heads=2, num_kv_heads=2, block_size=32, head_dim=head_dim, window=window)


def test_blocks_before_the_window_are_not_read(options):
    paged = Paged([1, 4], [90, 70], 2, 64, 16, torch.float32)
    q = torch.randn(5, 4, 64)
    expected = reference(q, paged, 0.125, 20, None, None)
    for row, (query_len, kv_len) in enumerate(zip(paged.batch.query_lens, paged.batch.kv_lens, strict=True)):
        for position in range(kv_len - query_len - 20 + 1):
            block = int(paged.batch.block_table[row, position // 16])
            paged.k_cache[block, :, position % 16] = paged.v_cache[block, :, position % 16] = torch.nan
    assert_close(paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.125, window=20), expected.float())


def test_large_scores_and_extreme_sinks(options):
    paged = Paged([1, 6], [70, 30], 2, 64, 16, torch.float32)
    q = 1e4 * torch.randn(7, 2, 64)
    sinks = torch.tensor([-1e8, 1e8])
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 1.0, sinks=sinks)
    assert_close(out[:, 0], reference(q, paged, 1.0, None, None, None)[:, 0].float())
    assert not out[:, 1].any()


def test_rows_of_no_queries_and_padding(options):
    paged = Paged([1, 0, 2], [20, 9, 5], 2, 64, 16, torch.float32)
    q = torch.randn(5, 4, 64)  # two rows more than the requests have
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1)
    assert_close(out[:3], reference(q[:3], paged, 0.1, None, None, None).float())
    assert not out[3:].any()


def test_no_token_at_all(options):
    batch = AttentionBatch(torch.zeros(1).int(), torch.zeros(0).int(), torch.zeros(0, 1).int(), [], [])
    cache = torch.zeros(1, 2, 16, 64)
    assert paged_attention(torch.zeros(0, 4, 64), cache, cache, batch, 1.0).shape == (0, 4, 64)


@pytest.mark.parametrize("window", [None, 40])
def test_a_static_batch_follows_its_lengths_without_new_launches(options, window):
    """What a captured graph replays: the same tensors and grids, other lengths, rows without a request."""
    paged = Paged([1] * 4, [1, 30, 200, 17], 2, 64, 16, torch.float32)
    source = paged.batch
    batch = AttentionBatch(source.cu_seqlens_q, source.seq_lens, source.block_table, [1] * 4, [0] * 4, static=True)
    q = torch.randn(4, 4, 64)

    def attend():
        return paged_attention(q, paged.k_cache, paged.v_cache, batch, 0.125, window)

    assert not attend().any()
    (work,) = batch.work.values()
    pointers = [(one.items.data_ptr(), one.items.shape, one.merges.shape) for one in work]
    batch.kv_lens[:] = source.kv_lens
    refill(batch)
    assert_close(attend(), reference(q, paged, 0.125, window, None, None).float())
    batch.kv_lens[1:] = [0, 200, 0]
    refill(batch)
    out = attend()
    assert_close(out[[0, 2]], reference(q, paged, 0.125, window, None, None).float()[[0, 2]])
    assert not out[[1, 3]].any()
    assert pointers == [(one.items.data_ptr(), one.items.shape, one.merges.shape) for one in work]


def test_layers_of_one_shape_share_their_work(options):
    paged = Paged([1, 9], [70, 25], 2, 64, 16, torch.float32)
    q = torch.randn(10, 4, 64)
    for window in (None, 8, None, 8):
        out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1, window)
        assert_close(out, reference(q, paged, 0.1, window, None, None).float())
    assert len(paged.batch.work) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((65, torch.float16, 16), "head_dim of 65"),
        ((512, torch.float16, 16), "head_dim of 512"),
        ((64, torch.float64, 16), "float64"),
        ((64, torch.float16, 24), "block_size of 24"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_attention(*arguments, torch.get_default_device())
    head_dim, dtype, block_size = arguments
    cache = torch.zeros(1, 1, block_size, head_dim, dtype=dtype)
    batch = AttentionBatch(torch.tensor([0, 1]), torch.tensor([1]), torch.zeros(1, 1).int(), [1], [1])
    with pytest.raises(ValueError, match=message):
        paged_attention(torch.zeros(1, 1, head_dim, dtype=dtype), cache, cache, batch, 1.0)


def test_too_many_heads_a_group():
    with pytest.raises(ValueError, match="129 query heads"):
        check_attention(64, torch.float16, 16, torch.get_default_device(), group=129)


def test_head_parts_hold_the_head():
    for head_dim in attention.HEAD_DIMS:
        whole, tail = attention.head_parts(head_dim)
        assert whole + tail >= head_dim and tail < whole
        assert all(part & (part - 1) == 0 for part in (whole, tail))
    assert attention.head_parts(80) == (64, 16)
    assert attention.head_parts(96) == (64, 32)
    assert attention.head_parts(128) == (128, 0)


@pytest.mark.parametrize("window", [None, 100])
def test_work_covers_every_key_once(window):
    rng = np.random.default_rng(0)
    for _ in range(50):
        group, heads = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        shape = WorkShape(group, heads, window, (128, 16), (64, 32), int(rng.integers(1, 133)))
        query_lens = rng.choice([0, 1, 1, 1, 3, 200, 700], 12)
        kv_lens = query_lens + rng.choice([0, 5, 1000, 40000], 12)
        seen = {}
        for kind, tiles in enumerate(cut(query_lens.tolist(), kv_lens.tolist(), shape)):
            items, merges, slots = split(tiles, shape.most_splits(kind), 64, shape.keys[kind])
            assert len(items) <= len(tiles) + shape.most_splits(kind) and items.shape[1] == ITEM
            assert len(merges) <= shape.most_splits(kind) and slots <= 2 * shape.most_splits(kind)
            assert sorted(items[items[:, 6] >= 0, 6]) == list(range(slots)) and merges[:, 3].sum() == slots
            for row, token, queries, position, first, end, *_ in items.tolist():
                assert queries * group <= shape.rows[kind]
                seen.setdefault((row, token, queries, position), []).append((first, end))
        starts = np.cumsum(query_lens) - query_lens
        for (row, token, queries, position), ranges in seen.items():
            assert position == kv_lens[row] - query_lens[row] + token - starts[row]
            ranges.sort()
            assert ranges[0][0] == (0 if window is None else max(0, position - window + 1))
            assert ranges[-1][1] == position + queries
            assert all(before[1] == after[0] for before, after in pairwise(ranges))
        assert sum(queries for _, _, queries, _ in seen) == query_lens.sum()


def test_a_long_request_does_not_set_the_time_of_the_step():
    """Beside 31 requests of 4k keys one of 128k is cut so finely that it is done with them."""
    shape = WorkShape(4, 8, None, (128, 16), (64, 64), 132)
    prefill, decode = cut([1] * 32, [131072] + [4096] * 31, shape)
    assert not len(prefill)
    items, _, _ = split(decode, shape.most_splits(DECODE), 128, 64)
    longest = int((items[:, 5] - items[:, 4]).max())
    waves = math.ceil(len(items) * 8 / (2 * 132))
    assert waves * longest <= 1.3 * (131072 + 31 * 4096) * 8 / (2 * 132)
    assert shape.most_splits(PREFILL) < shape.most_splits(DECODE)


def test_invariant_work_depends_on_its_own_request_alone(options):
    """A row among others is the same to the last bit, and cut as it is alone."""
    paged = Paged([1] * 4, [200, 9, 333, 64], 2, 64, 16, torch.float32)
    q = torch.randn(4, 4, 64)
    alone = AttentionBatch(
        torch.tensor([0, 1], dtype=torch.int32), paged.batch.seq_lens[:1], paged.batch.block_table[:1], [1], [200]
    )
    together = dataclasses.replace(paged.batch, invariant=True)
    outs = [
        paged_attention(q[: len(batch.query_lens)], paged.k_cache, paged.v_cache, batch, 0.1)[0]
        for batch in (dataclasses.replace(alone, invariant=True), together)
    ]
    assert torch.equal(*outs)
    shape = WorkShape(2, 2, None, (16, 16), (16, 16), 132)
    for kv_lens in ([5000], [5000] + [70000] * 15):
        _, tiles = cut([1] * len(kv_lens), kv_lens, shape)
        work = attention_work.Work(DECODE, shape, tiles, torch.device("cpu"), static=False, invariant=True)
        own = work.items[work.items[:, 0] == 0]
        assert len(own) == -(-5000 // 32) and own[:, 5].max() == 5000
