"""Latent attention against keys and values made token by token, and its two forms against each other."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels import mla
from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.mla import (
    absorbed_attention,
    expanded_attention,
    latent_attention,
    norm_rope_write_latent,
    write_latent,
)
from sirocco.kernels.norm import rms_norm
from sirocco.kernels.rope import rope_tables, rotate

H, D, P, DV, R, S = 3, 12, 8, 20, 48, 8
SCALE = 0.21


class Latents:
    """Random contexts in a shuffled cache whose every unused slot is NaN, and the matrices that make keys of them."""

    def __init__(self, query_lens: list[int], kv_lens: list[int], dtype: torch.dtype) -> None:
        blocks = [math.ceil(n / S) for n in kv_lens]
        self.contexts = [torch.randn(n, R + P).to(dtype) for n in kv_lens]
        self.cache = torch.full((sum(blocks) + 2, S, R + P), torch.nan, dtype=dtype)
        free = torch.randperm(len(self.cache)).tolist()
        table = torch.full((len(kv_lens), max(blocks) + 1), -1, dtype=torch.int32)
        for row, (count, context) in enumerate(zip(blocks, self.contexts, strict=True)):
            table[row, :count] = torch.tensor([free.pop() for _ in range(count)])
            position = torch.arange(len(context))
            write_latent(context, self.cache, table[row].long()[position // S] * S + position % S)
        starts = torch.tensor([0, *query_lens]).cumsum(0).int()
        self.batch = AttentionBatch(starts, torch.tensor(kv_lens, dtype=torch.int32), table, query_lens, kv_lens)
        self.w_k, self.w_v = ((torch.randn(H, n, R) / R**0.5).to(dtype) for n in (D, DV))
        self.q = torch.randn(sum(query_lens), H, D + P).to(dtype)


def reference(latents: Latents) -> Tensor:
    """One query and one head at a time, with keys and values in full."""
    out, token = [], 0
    w_k, w_v = latents.w_k.double(), latents.w_v.double()
    for context, query_len in zip(latents.contexts, latents.batch.query_lens, strict=True):
        latent, turned = context.double().split([R, P], -1)
        for i in range(query_len):
            seen = slice(0, len(context) - query_len + i + 1)
            heads = []
            for h in range(H):
                keys = torch.cat((latent[seen] @ w_k[h].T, turned[seen]), -1)
                weights = (keys @ latents.q[token, h].double() * SCALE).softmax(0)
                heads.append(weights @ (latent[seen] @ w_v[h].T))
            out.append(torch.stack(heads))
            token += 1
    return torch.stack(out)


LENGTHS = [
    ([1], [1]),
    ([1, 1, 1], [5, 40, 8]),
    ([30], [30]),
    ([90], [203]),
    ([1, 70, 3, 60, 1], [17, 70, 9, 100, 33]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("query_lens", "kv_lens"), LENGTHS)
@pytest.mark.parametrize("padding", [0, 3])
def test_latent_attention(dtype: torch.dtype, query_lens: list[int], kv_lens: list[int], padding: int) -> None:
    latents = Latents(query_lens, kv_lens, dtype)
    q = torch.cat((latents.q, torch.randn(padding, H, D + P).to(dtype)))
    actual = latent_attention(q, latents.w_k, latents.w_v, latents.cache, latents.batch, SCALE)
    assert actual.dtype == dtype and actual.shape == (len(q), H, DV)
    atol = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-12}[dtype]
    assert_close(actual[: len(latents.q)].double(), reference(latents), rtol=0, atol=atol)
    assert not actual[len(latents.q) :].any()


@pytest.mark.parametrize(("query_len", "kv_len"), [(1, 1), (1, 100), (60, 60), (40, 111)])
def test_absorbed_form_is_the_expanded_one(query_len: int, kv_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mla, "_EXPANDED_BYTES", 1)  # one head at a time
    monkeypatch.setattr(mla, "_SCORE_BYTES", 1)  # one query at a time, or 16
    latents = Latents([query_len], [kv_len], torch.float64)
    weights = latents.w_k, latents.w_v
    absorbed = absorbed_attention(latents.q, *weights, [(query_len, latents.contexts[0])], SCALE)
    assert_close(absorbed, expanded_attention(latents.q, *weights, latents.contexts[0], SCALE), rtol=0, atol=1e-12)


def test_long_prompts_are_expanded_and_single_tokens_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = []

    def record(q: Tensor, *rest: Tensor) -> Tensor:
        expanded.append(len(q))
        return expanded_attention(q, *rest)

    monkeypatch.setattr(mla, "expanded_attention", record)
    latents = Latents([1, 90, 2], [200, 90, 30], torch.float32)
    latent_attention(latents.q, latents.w_k, latents.w_v, latents.cache, latents.batch, SCALE)
    assert expanded == [90]


def test_padding_is_not_written() -> None:
    cache = torch.zeros(2, S, R + P)
    latent = torch.randn(3, R + P)
    write_latent(latent, cache, torch.tensor([S + 1, -1, 0]))
    assert torch.equal(cache[1, 1], latent[0]) and torch.equal(cache[0, 0], latent[2])
    assert cache.count_nonzero() == 2 * (R + P)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [P, P - 2])
def test_norm_rope_write(interleaved: bool, rotary_dim: int) -> None:
    q, kv, weight = torch.randn(3, H, D + P), torch.randn(3, R + P), torch.randn(R)
    tables = rope_tables(torch.rand(rotary_dim // 2), torch.tensor([4, 0, 90]))
    before, cache, slots = q.clone(), torch.zeros(2, S, R + P), torch.tensor([S + 1, -1, 0])
    norm_rope_write_latent(q, kv, weight, 1e-6, *tables, interleaved, cache, slots)
    assert torch.equal(q[..., :D], before[..., :D])
    assert_close(q[..., D:], rotate(before[..., D:], *tables, interleaved))
    key = rotate(kv[:, None, R:], *tables, interleaved)[:, 0]
    latent = torch.cat((rms_norm(kv[:, :R], weight, 1e-6), key), -1)
    assert_close(cache[[1, 0], [1, 0]], latent[[0, 2]])
    assert cache.count_nonzero() == 2 * (R + P)
