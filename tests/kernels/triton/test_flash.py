"""flash-attn behind the operator, with a module in its place that computes what it would."""

import json
import sys
import types

import pytest
import torch
from torch.testing import assert_close

from sirocco.kernels import flash
from sirocco.kernels.attention import paged_attention
from sirocco.kernels.triton import common

from ..test_attention import Paged, reference


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Install the module, and a measurement by which it wins from 8 queries on at head dim 64."""
    calls = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale, causal, window_size, softcap
    ):
        calls.append((cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), max_seqlen_q, max_seqlen_k, window_size))
        assert causal
        out = []
        group = q.shape[1] // k.shape[1]
        for i in range(len(cu_seqlens_q) - 1):
            queries = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]].double()
            keys, values = (
                x[cu_seqlens_k[i] : cu_seqlens_k[i + 1]].double().repeat_interleave(group, 1) for x in (k, v)
            )
            scores = torch.einsum("qhd,khd->hqk", queries, keys) * softmax_scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            distance = torch.arange(len(keys) - len(queries), len(keys))[:, None] - torch.arange(len(keys))
            hidden = (distance < 0) | ((distance > window_size[0]) if window_size[0] >= 0 else False)
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            out.append(torch.einsum("hqk,khd->qhd", weights, values))
        return torch.cat(out).to(q.dtype)

    module = types.ModuleType("flash_attn")
    module.__spec__ = types.SimpleNamespace(name="flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    table = tmp_path / "flash.json"
    table.write_text(json.dumps({"some-gpu": {"64": 8}}))
    monkeypatch.setattr(flash, "TABLE", table)
    flash.from_queries.cache_clear()
    with common.configured_for("some-gpu", "sm_90"):
        yield calls
    flash.from_queries.cache_clear()


def check(query_lens, kv_lens, dtype=torch.float16, head_dim=64, **options):
    paged = Paged(query_lens, kv_lens, 2, head_dim, 16, dtype)
    q = torch.randn(sum(query_lens), 4, head_dim).to(dtype)
    for _ in range(2):  # layers share what was planned
        out = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.1, **options)
    expected = reference(q, paged, 0.1, options.get("window"), options.get("softcap"), options.get("sinks"))
    assert_close(out, expected.to(dtype), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("options", [{}, {"window": 10}, {"softcap": 2.0}], ids=str)
def test_long_chunks_go_there_and_the_rest_does_not(calls, options):
    check([1, 3, 9, 20], [30, 3, 9, 45], **options)
    window = options.get("window")
    assert calls == 2 * [([0, 9, 29], [0, 9, 54], 20, 45, (-1, -1) if window is None else (window - 1, 0))]


def test_a_step_of_long_chunks_alone(calls):
    check([12], [12])
    assert len(calls) == 2


@pytest.mark.parametrize(
    "lens, options",
    [
        (([1, 5], [9, 5]), {}),
        (([20, 1], [20, 9]), {}),  # long ones come last in a step
        (([1, 20], [9, 20]), {"dtype": torch.float32}),
        (([1, 20], [9, 20]), {"head_dim": 32}),  # not measured
        (([1, 20], [9, 20]), {"sinks": torch.zeros(4)}),  # it has none
    ],
)
def test_what_stays_with_our_kernel(calls, lens, options):
    check(*lens, **options)
    assert not calls


def test_a_device_that_was_not_measured_does_not_use_it(calls):
    with common.configured_for("other-gpu", "sm_80"):
        check([12], [12])
    assert not calls


def test_what_is_kept_is_used_on_that_device_alone(calls):
    flash.keep(128, 300)
    flash.keep(32, 16)
    assert flash.from_queries(32, torch.float16) == 16 and flash.from_queries(64, torch.float16) == 8
    flash.keep(64, None)
    assert flash.from_queries(64, torch.float16) is None
    assert json.loads(flash.TABLE.read_text()) == {"some-gpu": {"32": 16, "128": 300}}
    with common.configured_for("other-gpu", "sm_80"):
        flash.keep(64, 5)
    assert flash.from_queries(64, torch.float16) is None
    check([1, 20], [9, 20], head_dim=32)
    assert len(calls) == 2


def test_another_table_begins_as_the_one_in_use(calls, tmp_path):
    before = flash.TABLE.read_text()
    flash.keep(128, 300, tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text()) == {"some-gpu": {"64": 8, "128": 300}}
    assert flash.TABLE.read_text() == before


def test_nothing_is_kept_without_a_device(calls):
    with common.configured_for("default", "default"), pytest.raises(ValueError, match="there is none"):
        flash.keep(64, 5)


def test_what_ships_names_head_dims_and_numbers():
    measured = json.loads(flash.TABLE.read_text())
    for device, heads in measured.items():
        assert device and all(int(head_dim) and least > 0 for head_dim, least in heads.items())
