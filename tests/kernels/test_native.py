"""The C++ kernels against float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels import kv, norm
from sirocco.kernels.activation import geglu, swiglu
from sirocco.kernels.attention import AttentionBatch, paged_attention_torch
from sirocco.kernels.backend import use_native
from sirocco.kernels.linear import pack_linear, packed_linear, unpack_linear
from sirocco.kernels.native import ops
from sirocco.kernels.rope import rope_tables

pytestmark = pytest.mark.skipif(not ops.available(), reason="no C++ compiler")
BF16 = torch.bfloat16


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape).to(BF16)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 6, 7, 13, 40])
@pytest.mark.parametrize(("num_out", "num_in"), [(64, 32), (97, 46), (8, 2), (200, 640)], ids=str)
def test_linear(num_rows: int, num_out: int, num_in: int) -> None:
    x, weight, bias = randn(num_rows, num_in), randn(num_out, num_in), randn(num_out)
    expected = x.double() @ weight.double().T + bias.double()
    assert_close(ops.linear(x, ops.pack(weight), num_out, bias).double(), expected, rtol=4e-3, atol=4e-3)
    wide = ops.linear(x, ops.pack(weight), num_out, bias, torch.float32)
    assert wide.dtype is torch.float32
    assert_close(wide.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_row_is_the_same_alone_and_among_others() -> None:
    x, packed = randn(45, 256), ops.pack(randn(130, 256))
    together = ops.linear(x, packed, 130, None)
    for count in (1, 2, 3, 5, 6, 7, 16):
        assert torch.equal(ops.linear(x[:count], packed, 130, None), together[:count])


def test_linear_takes_rows_that_lie_apart() -> None:
    packed = ops.pack(randn(70, 64))
    for gap in (64, 65):
        x = randn(9, 64 + gap)[:, :64]
        assert torch.equal(ops.linear(x, packed, 70, None), ops.linear(x.contiguous(), packed, 70, None))
    assert ops.linear(x.view(3, 3, 64), packed, 70, None).shape == (3, 3, 70)


def test_linear_refuses_what_it_would_misread() -> None:
    packed, x = ops.pack(randn(70, 64)), randn(2, 64)
    for wrong in (x.float(), x[:, :32], randn(2, 66), randn(2, 3, 32)):
        with pytest.raises(ValueError, match=r"rows of .* for a weight of 64 inputs"):
            ops.linear(wrong, packed, 70, None)
    for bias in (randn(69), torch.zeros(70)):
        with pytest.raises(ValueError, match=r"a bias of .* for 70 outputs"):
            ops.linear(x, packed, 70, bias)
    for wrong in (x.float(), x[:, :32]):
        with pytest.raises(ValueError, match="rows of"):
            ops.grouped_linear(wrong, [2], [packed], 70, None)
    with pytest.raises(ValueError, match="groups of 3 rows for 2 rows"):
        ops.grouped_linear(x, [3], [packed], 70, None)


def test_rows_of_other_widths_are_refused() -> None:
    x = randn(2, 64)
    for size in (8, 65):
        with pytest.raises(ValueError, match=f"a norm's weight of {size} for rows of 64"):
            norm.rms_norm(x, randn(size), 1e-6)
        with pytest.raises(ValueError, match=f"a norm's weight of {size} for rows of 64"):
            norm.add_rms_norm(x, x, randn(size).float(), 1e-6)
    with pytest.raises(ValueError, match="a residual of shape"):
        norm.add_rms_norm(x, x[:1], randn(64), 1e-6)
    with pytest.raises(ValueError, match="rows of 63"):
        swiglu(x[:, :63])
    cache, slots = randn(3, 2, 16, 32), torch.arange(2)
    for width, count in ((8 * 32 + 8, 2), (8 * 16, 2), (8 * 32, 3)):
        with pytest.raises(ValueError, match="does not fit a cache"):
            kv.norm_rope_write(
                *(randn(2, width), None, None, 1e-6, None, None, False),
                *(cache, cache, torch.arange(count), 4, 2),
            )
    with pytest.raises(ValueError, match="a norm's weight of 16 for rows of 32"):
        kv.norm_rope_write(randn(2, 8 * 32), randn(16), randn(16), 1e-6, None, None, False, cache, cache, slots, 4, 2)
    with pytest.raises(ValueError, match="do not fit a cache"):
        ops.paged_attention(
            *(randn(2, 4, 64), cache, cache, torch.tensor([[2], [2]]), torch.ones(1, 1, dtype=torch.int32)),
            *(1.0, None, None, None),
        )


@pytest.mark.skipif(not ops.has_products(), reason="no products of bfloat16 on this processor")
def test_a_packed_weight_unpacks() -> None:
    weight = randn(75, 38)
    packed = pack_linear(weight)
    assert not isinstance(packed, Tensor)
    assert packed.native
    assert torch.equal(unpack_linear(packed), weight)
    odd = pack_linear(randn(75, 37))  # pairs of inputs are what is multiplied
    assert isinstance(odd, Tensor) or not odd.native
    x = randn(2, 37)
    assert odd is not None
    if not isinstance(odd, Tensor):
        assert packed_linear(x, odd).shape == (2, 75)


@pytest.mark.parametrize("width", [1, 31, 256])
@pytest.mark.parametrize("dtype", ops.NORM_DTYPES, ids=str)
def test_norms(width: int, dtype: torch.dtype) -> None:
    x, residual, weight = randn(7, 2 * width)[:, :width], randn(7, width), torch.randn(width).to(dtype)
    total = (x.double() + residual.double()).to(BF16)
    out, stream = ops.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(stream, total)
    for got, read in ((out, total), (ops.rms_norm(x, weight, 1e-6), x)):
        wide = read.double()
        expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
        assert_close(got.double(), expected, rtol=8e-3, atol=1e-4)


def test_what_is_added_or_multiplied_may_lie_apart() -> None:
    x, apart = randn(2, 64), torch.randn(128).to(BF16)[::2]
    together = apart.contiguous()
    assert torch.equal(ops.rms_norm(x, apart, 1e-6), ops.rms_norm(x, together, 1e-6))
    assert torch.equal(ops.add_rms_norm(x, x, apart, 1e-6)[0], ops.add_rms_norm(x, x, together, 1e-6)[0])
    one = torch.ones(1).to(BF16).expand(64)
    assert torch.equal(ops.rms_norm(x, one, 1e-6), ops.rms_norm(x, one.clone(), 1e-6))
    if ops.has_products():
        packed = ops.pack(randn(64, 64))
        assert torch.equal(ops.linear(x, packed, 64, apart), ops.linear(x, packed, 64, together))
        grouped = [ops.grouped_linear(x, [2], [packed], 64, [bias]) for bias in (apart, together)]
        assert torch.equal(*grouped)


def test_weights_of_norms_may_be_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's are: a weight of 1 and a bit does not fit bfloat16."""
    for module in (norm, kv):
        monkeypatch.setattr(module, "rms_norm_torch", lambda *_: pytest.fail("a norm of torch's"))
    x, weight, cache = randn(2, 32), torch.randn(32), randn(3, 2, 16, 32)
    norm.rms_norm(x, weight, 1e-6)
    norm.add_rms_norm(x, x, weight, 1e-6)
    qkv, slots = randn(2, 8 * 32), torch.arange(2)
    kv.norm_rope_write(qkv, weight, weight, 1e-6, None, None, False, cache, cache, slots, 4, 2)


@pytest.mark.parametrize("num_rows", [1, 300])
def test_gates(num_rows: int) -> None:
    gate_up = randn(num_rows, 2 * 131) * 4
    gate_up[0, :4] = torch.tensor([-90.0, 90.0, -1e4, 1e4])
    gate, up = gate_up.double().chunk(2, -1)
    assert_close(swiglu(gate_up).double(), torch.nn.functional.silu(gate) * up, rtol=8e-3, atol=1e-5)
    expected = torch.nn.functional.gelu(gate, approximate="tanh") * up
    assert_close(geglu(gate_up, tanh=True).double(), expected, rtol=8e-3, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 16, 32])
@pytest.mark.parametrize("normed", [None, *ops.NORM_DTYPES], ids=str)
def test_norm_rope_write(
    interleaved: bool, rotary_dim: int | None, normed: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, slots = randn(9, (4 + 2 * 2) * 32), torch.randperm(48)[:9]
    slots[4] = -1
    weights = (None, None) if normed is None else (torch.randn(32).to(normed), torch.randn(32).to(normed))
    turn: tuple[Tensor | None, Tensor | None] = (None, None)
    if rotary_dim is not None:
        turn = rope_tables(1e4 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim), torch.arange(9) * 7)
    found = []
    for native in (True, False):
        caches = torch.zeros(2, 3, 2, 16, 32, dtype=BF16)
        monkeypatch.setattr(kv, "use_native", lambda x, native=native: native)
        q = kv.norm_rope_write(qkv, *weights, 1e-6, *turn, interleaved, caches[0], caches[1], slots, 4, 2)
        found.append((q, caches))
    (q, caches), (expected_q, expected_caches) = found
    assert_close(q, expected_q, rtol=8e-3, atol=8e-3)
    assert_close(caches, expected_caches, rtol=8e-3, atol=8e-3)
    assert torch.equal(caches[1], expected_caches[1])


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "window", "softcap", "sinks"),
    [
        (16, 8, 128, None, None, False),
        (8, 2, 64, 20, None, True),
        (4, 4, 80, None, 30.0, False),
        (6, 3, 96, 33, None, False),
        (9, 1, 256, None, 50.0, True),  # more heads of a group than are multiplied in place
    ],
)
def test_paged_attention(
    num_heads: int, num_kv_heads: int, head_dim: int, window: int | None, softcap: float | None, sinks: bool
) -> None:
    lens = [(1, 70), (40, 40), (1, 1), (5, 200), (150, 190), (1, 64)]
    caches = randn(2, 64, num_kv_heads, 16, head_dim)
    caches[:, 0] = torch.nan  # what no request holds is not read
    free = (torch.randperm(63) + 1).int()
    table = torch.zeros(len(lens), 16, dtype=torch.int32)
    for i, (_, length) in enumerate(lens):
        used = -(-length // 16)
        table[i, :used], free = free[:used], free[used:]
        if length % 16:
            caches[:, table[i, used - 1], :, length % 16 :] = torch.nan  # nor what lies past its end
        if window is not None:
            left = max(0, length - lens[i][0] - window + 1) // 16
            caches[:, table[i, :left].long()] = torch.nan  # nor blocks that its window has left
    query_lens, kv_lens = [n for n, _ in lens], [n for _, n in lens]
    q = randn(sum(query_lens), num_heads, head_dim)
    logits = randn(num_heads) if sinks else None
    scale = head_dim**-0.5
    out = ops.paged_attention(
        q, caches[0], caches[1], torch.tensor([query_lens, kv_lens]), table, scale, window, softcap, logits
    )
    cu_seqlens = torch.tensor([0, *query_lens]).cumsum(0).int()
    batch = AttentionBatch(cu_seqlens, torch.tensor(kv_lens).int(), table, query_lens, kv_lens)
    clean = caches.nan_to_num(0).double()
    wide = None if logits is None else logits.double()
    expected = paged_attention_torch(q.double(), clean[0], clean[1], batch, scale, window, softcap, wide)
    assert_close(out.double(), expected, rtol=1e-2, atol=1.5e-2)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(7, 1), (16, 1), (4, 2)])
@pytest.mark.parametrize("window", [None, 3000])
def test_long_contexts_are_added_up_from_runs(num_heads: int, num_kv_heads: int, window: int | None) -> None:
    """Whoever else is computed and however many threads do it, a request's numbers are the same."""
    lens = [(1, 5000), (1, 2048), (1, 2049), (3, 4097), (1, 9), (2, 2049)]
    blocks = [-(-length // 16) for _, length in lens]
    caches = randn(2, sum(blocks), num_kv_heads, 16, 64)
    table = torch.zeros(len(lens), max(blocks), dtype=torch.int32)
    for i, count in enumerate(blocks):
        table[i, :count] = torch.arange(count) + sum(blocks[:i])
    query_lens, kv_lens = [n for n, _ in lens], [n for _, n in lens]
    q, sinks, scale = randn(sum(query_lens), num_heads, 64), randn(num_heads), 64**-0.5

    def attend(q: Tensor, query_lens: list[int], kv_lens: list[int], table: Tensor) -> Tensor:
        counts = torch.tensor([query_lens, kv_lens])
        return ops.paged_attention(q, caches[0], caches[1], counts, table, scale, window, None, sinks)

    out = attend(q, query_lens, kv_lens, table)
    cu_seqlens = torch.tensor([0, *query_lens]).cumsum(0).int()
    batch = AttentionBatch(cu_seqlens, torch.tensor(kv_lens).int(), table, query_lens, kv_lens)
    expected = paged_attention_torch(q.double(), *caches.double(), batch, scale, window, None, sinks.double())
    assert_close(out.double(), expected, rtol=1e-2, atol=1e-3)
    alone = [attend(rows, [len(rows)], [kv_lens[i]], table[i : i + 1]) for i, rows in enumerate(q.split(query_lens))]
    assert torch.equal(torch.cat(alone), out)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        assert torch.equal(attend(q, query_lens, kv_lens, table), out)
    finally:
        torch.set_num_threads(threads)


def test_only_bfloat16_on_the_cpu_is_theirs() -> None:
    assert use_native(torch.zeros(1, dtype=BF16))
    assert not use_native(torch.zeros(1))
    assert not use_native(torch.zeros(1, dtype=BF16, device="meta"))


@pytest.mark.parametrize("with_bias", [False, True])
def test_grouped_linear(with_bias: bool) -> None:
    counts = [1, 9, 70, 3]
    x = randn(sum(counts), 96)
    weights, biases = [randn(130, 96) for _ in counts], [randn(130) for _ in counts]
    out = ops.grouped_linear(x, counts, [ops.pack(w) for w in weights], 130, biases if with_bias else None)
    alone = [
        ops.linear(part, ops.pack(weight), 130, bias if with_bias else None)
        for part, weight, bias in zip(x.split(counts), weights, biases, strict=True)
    ]
    assert torch.equal(out, torch.cat(alone))


@pytest.mark.parametrize("num_queries", [1, 12])
@pytest.mark.parametrize("wrong", ["queries", "keys"])
def test_attention_hides_no_nan(num_queries: int, wrong: str) -> None:
    """A sampler that meets NaN fails the request; zeros in its place would go on as wrong text."""
    k_cache, v_cache, q = randn(4, 1, 16, 64), randn(4, 1, 16, 64), randn(num_queries, 2, 64)
    (q if wrong == "queries" else k_cache).fill_(torch.nan)
    lens, table = torch.tensor([[num_queries], [40]]), torch.tensor([[1, 2, 3]], dtype=torch.int32)
    assert ops.paged_attention(q, k_cache, v_cache, lens, table, 0.1, None, None, None).isnan().all()


@pytest.mark.parametrize("run", [0, 1])
def test_a_nan_of_one_run_is_one_of_the_whole(run: int) -> None:
    k_cache, v_cache, q = randn(256, 1, 16, 64), randn(256, 1, 16, 64), randn(1, 2, 64)
    k_cache[128 * run : 128 * (run + 1)] = torch.nan
    lens, table = torch.tensor([[1], [4096]]), torch.arange(256, dtype=torch.int32)[None]
    assert ops.paged_attention(q, k_cache, v_cache, lens, table, 0.1, None, None, None).isnan().all()
