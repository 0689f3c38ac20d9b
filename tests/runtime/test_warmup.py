"""What runs before the first request, on a model with recurrent layers and experts."""

import pytest
import torch

from sirocco.runtime import build, warmup
from sirocco.runtime.build import assemble
from sirocco.runtime.models.cache import StateCache
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.warmup import warm_up
from sirocco.runtime.wire import EngineOptions

HYBRID = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "shared_intermediate_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["mamba", "attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "mamba_n_heads": 4,
    "mamba_d_state": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize("max_model_len", [1, 300])
def test_recurrent_layers_are_warmed_up_in_one_slot(monkeypatch, max_model_len):
    monkeypatch.setitem(SHAPES, "hybrid", HYBRID)
    loaded = random_model("hybrid", "float32", "cpu")
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=3, kv_memory=1 << 20), "test")
    caches = core.runner.caches
    states = [tensor for cache in caches if isinstance(cache, StateCache) for tensor in cache.tensors.values()]
    for tensor in states:
        tensor.fill_(torch.nan)
    warm_up(loaded.model, caches, 16, 256, max_model_len, torch.device("cpu"))
    assert len(states) == 2
    for tensor in states:
        assert bool(tensor[0].isfinite().all() and tensor[1:].isnan().all())


def test_every_way_to_draw_is_warmed_up(monkeypatch):
    drawn = []
    monkeypatch.setattr(warmup, "sample", lambda logits, params: drawn.append(params))
    warmup._draw(torch.zeros(1, 50))
    ways = [(draw.greedy, draw.uses_min_p, draw.uses_top_k or draw.uses_top_p) for draw in drawn]
    assert sorted(ways) == [(False, False, False), (False, False, True), (False, True, False), (True, False, False)]
    assert all((draw.min_p > 0).all() for draw in drawn if draw.uses_min_p)


def test_a_device_that_refuses_captures_runs_without_them(monkeypatch, caplog):
    monkeypatch.setitem(SHAPES, "hybrid", HYBRID)
    core, _ = assemble(
        random_model("hybrid", "float32", "cpu"), EngineOptions(max_num_seqs=3, kv_memory=1 << 20), "test"
    )

    def refuse():
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(build, "CudaCapture", refuse)
    build._capture(core.runner)
    assert core.runner.graph_misses == 0
    assert "cannot be captured" in caplog.text and "not permitted when stream is capturing" in caplog.text
