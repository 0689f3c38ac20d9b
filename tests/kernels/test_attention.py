import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels.attention import AttentionBatch, paged_attention

TOLERANCE = {  # of unit-variance values; half precision rounds scores, weights and outputs
    torch.float32: 2e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
    torch.float64: 1e-11,
}


class Paged:
    """Random contexts in a shuffled cache whose every unused slot is NaN."""

    def __init__(
        self,
        query_lens: list[int],
        kv_lens: list[int],
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        blocks = [math.ceil(n / block_size) for n in kv_lens]
        self.k = [torch.randn(n, num_kv_heads, head_dim).to(dtype) for n in kv_lens]
        self.v = [torch.randn(n, num_kv_heads, head_dim).to(dtype) for n in kv_lens]
        self.k_cache, self.v_cache = torch.full(
            (2, sum(blocks) + 3, num_kv_heads, block_size, head_dim), torch.nan, dtype=dtype
        )
        free = torch.randperm(sum(blocks) + 3).tolist()
        table = torch.full((len(kv_lens), max(blocks) + 2), -1, dtype=torch.int32)
        for row, count in enumerate(blocks):
            table[row, :count] = torch.tensor([free.pop() for _ in range(count)])
            for j in range(kv_lens[row]):
                block = int(table[row, j // block_size])
                self.k_cache[block, :, j % block_size] = self.k[row][j]
                self.v_cache[block, :, j % block_size] = self.v[row][j]
        starts = torch.tensor([0, *query_lens]).cumsum(0).int()
        self.batch = AttentionBatch(starts, torch.tensor(kv_lens, dtype=torch.int32), table, query_lens, kv_lens)


def reference(
    q: Tensor, paged: Paged, scale: float, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """One query and one head at a time."""
    out, token = [], 0
    group = q.shape[1] // paged.k[0].shape[1]
    for k, v, query_len in zip(paged.k, paged.v, paged.batch.query_lens, strict=True):
        for i in range(query_len):
            position = len(k) - query_len + i
            first = 0 if window is None else max(0, position - window + 1)
            heads = []
            for h in range(q.shape[1]):
                keys, values = (x[first : position + 1, h // group].double() for x in (k, v))
                scores = keys @ q[token, h].double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[h : h + 1].double()])
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                heads.append(weights[: len(values)] @ values)
            out.append(torch.stack(heads))
            token += 1
    return torch.stack(out)


def check(
    query_lens: list[int],
    kv_lens: list[int],
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    with_sinks: bool = False,
) -> None:
    paged = Paged(query_lens, kv_lens, num_kv_heads, head_dim, block_size, dtype)
    q = torch.randn(sum(query_lens), 2 * num_heads, head_dim).to(dtype)[:, :num_heads]
    sinks = torch.randn(num_heads).to(dtype) if with_sinks else None
    scale = head_dim**-0.5
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, scale, window, softcap, sinks)
    expected = reference(q, paged, scale, window, softcap, sinks)
    assert out.dtype == dtype
    assert_close(out, expected.to(dtype), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


MIXES = {
    "one token": ([1], [1]),
    "decodes of unlike lengths": ([1, 1, 1, 1, 1], [1, 7, 16, 17, 150]),
    "prompt": ([37], [37]),
    "chunk on a context": ([20], [53]),
    "mixed": ([1, 5, 1, 33, 1, 2], [40, 5, 1, 60, 16, 33]),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_mixes(dtype: torch.dtype, mix: str) -> None:
    check(*MIXES[mix], dtype=dtype)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_head_and_block_sizes(head_dim: int, block_size: int) -> None:
    check(*MIXES["mixed"], head_dim=head_dim, block_size=block_size)


@pytest.mark.parametrize("num_heads, num_kv_heads", [(1, 1), (3, 3), (4, 2), (6, 2), (8, 2), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_heads(num_heads: int, num_kv_heads: int, dtype: torch.dtype) -> None:
    check(*MIXES["mixed"], num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=dtype)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 40, 1000])
@pytest.mark.parametrize("mix", ["decodes of unlike lengths", "mixed"])
def test_window(window: int, mix: str) -> None:
    check(*MIXES[mix], window=window)


def test_blocks_before_the_window_are_not_read() -> None:
    paged = Paged([1, 4], [90, 70], 2, 64, 16, torch.float32)
    q = torch.randn(5, 4, 64)
    expected = reference(q, paged, 0.125, 20, None, None)
    for row, (query_len, kv_len) in enumerate(zip(paged.batch.query_lens, paged.batch.kv_lens, strict=True)):
        for position in range(kv_len - query_len - 20 + 1):  # what lies before the first query's window
            block = int(paged.batch.block_table[row, position // 16])
            paged.k_cache[block, :, position % 16] = paged.v_cache[block, :, position % 16] = torch.nan
    assert_close(paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.125, window=20), expected.float())


@pytest.mark.parametrize("softcap", [None, 0.5, 20.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 18])
def test_softcap_and_sinks(softcap: float | None, with_sinks: bool, window: int | None) -> None:
    check(*MIXES["mixed"], num_heads=6, softcap=softcap, with_sinks=with_sinks, window=window)


def test_a_sink_takes_all_or_nothing() -> None:
    paged = Paged([3], [20], 1, 64, 16, torch.float32)
    q = torch.randn(3, 2, 64)
    plain = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1)
    sunk = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1, sinks=torch.tensor([-1e4, 1e4]))
    assert_close(sunk[:, 0], plain[:, 0])
    assert not sunk[:, 1].any()


def test_large_scores_do_not_overflow() -> None:
    paged = Paged([1, 6], [50, 30], 2, 64, 16, torch.float32)
    q = 1e4 * torch.randn(7, 4, 64)
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 1.0)
    assert_close(out, reference(q, paged, 1.0, None, None, None).float())


def test_large_products_fit_float16() -> None:
    """Their scale brings them back into range; applied afterwards it would come too late."""
    paged = Paged([1, 6], [50, 30], 2, 128, 16, torch.float16)
    for keys in (paged.k_cache, *paged.k):
        keys[..., :2] = 250
    q = torch.randn(7, 4, 128).half()
    q[..., :2] = 150
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 128**-0.5)
    assert_close(out.double(), reference(q, paged, 128**-0.5, None, None, None), atol=5e-2, rtol=5e-2)


def test_many_tiles_and_head_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace so small that prompts are cut into tiles and heads go one by one."""
    monkeypatch.setattr("sirocco.kernels.attention._QUERY_ROWS", 14)
    monkeypatch.setattr("sirocco.kernels.attention._KEY_BYTES", 40 * 64 * 4)
    for window in (None, 9):
        check([1, 29, 1, 1], [70, 45, 20, 21], num_heads=6, num_kv_heads=3, window=window, with_sinks=True)


def test_a_chunk_larger_than_a_tile() -> None:
    check([300, 1], [310, 300], num_heads=2, num_kv_heads=2)


def test_layers_share_one_plan() -> None:
    paged = Paged([1, 9], [30, 25], 2, 64, 16, torch.float32)
    q = torch.randn(10, 4, 64)
    for window in (None, 8, None, 8):  # layers that alternate
        out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1, window)
        assert_close(out, reference(q, paged, 0.1, window, None, None).float())


def test_padding_rows_are_left_alone() -> None:
    paged = Paged([1, 2], [20, 9], 2, 64, 16, torch.float32)
    q = torch.randn(5, 4, 64)  # two rows more than the requests have
    out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1)
    assert out.shape == q.shape and bool(out.isfinite().all())
    assert_close(out[:3], reference(q[:3], paged, 0.1, None, None, None).float())


@pytest.mark.parametrize("kv_len", [1, 40, 150, 700])
def test_a_token_does_not_depend_on_its_batch(kv_len: int) -> None:
    kv_lens = [kv_len, 3, 99, 151, 149, 700, 41]
    paged = Paged([1] * 7, kv_lens, 2, 64, 16, torch.float32)
    q = torch.randn(7, 4, 64)
    together = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.125)
    batch = paged.batch
    alone = AttentionBatch(batch.cu_seqlens_q[:2], batch.seq_lens[:1], batch.block_table[:1], [1], [kv_len])
    assert_close(paged_attention(q[:1], paged.k_cache, paged.v_cache, alone, 0.125), together[:1], rtol=1e-6, atol=1e-7)
