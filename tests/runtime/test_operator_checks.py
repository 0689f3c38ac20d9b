"""What a device's kernels cannot do is refused when a model is loaded, with a sentence that names it."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from sirocco.kernels import backend
from sirocco.runtime.build import assemble, build_engine
from sirocco.runtime.errors import ModelLoadError, NotEnoughMemoryError
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.wire import EngineOptions

pytest.importorskip("triton", reason="needs Linux, as Triton does")

LATENT = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "kv_lora_rank": 136,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 128,
}


def test_a_wide_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", LATENT)
    loaded, options = random_model("tiny", "float32", "cpu"), EngineOptions(kv_memory=1 << 20, max_num_seqs=2)
    assemble(loaded, options, "tiny")
    monkeypatch.setattr(backend, "FORCE_TRITON", True)
    with pytest.raises(ModelLoadError, match=r"kv_lora_rank of 136 in torch\.float32: 1 to 128"):
        assemble(loaded, options, "tiny")


def test_a_wide_head_of_an_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=64, hidden_size=520, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    BertModel(config).to(torch.float32).save_pretrained(tmp_path)
    options = EngineOptions(str(tmp_path), device="cpu", dtype="float32")
    build_engine(options)
    monkeypatch.setattr(backend, "FORCE_TRITON", True)
    with pytest.raises(ModelLoadError, match="bidirectional attention has no kernel for a head_dim of 260"):
        build_engine(options)


def test_a_model_that_memory_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> object:
        return torch.empty(1 << 47, dtype=torch.bfloat16)

    monkeypatch.setattr("sirocco.runtime.build.load_model", load)
    with pytest.raises(NotEnoughMemoryError, match="not enough memory"):
        build_engine(EngineOptions("demo", device="cpu"))


def test_memory_that_is_short_now_is_told_from_too_little_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="too small") as asked:
        build_engine(EngineOptions("demo", device="cpu", kv_memory=100))
    monkeypatch.setattr("sirocco.runtime.build.available_memory", lambda: 400)
    with pytest.raises(NotEnoughMemoryError, match="too small"):
        build_engine(EngineOptions("demo", device="cpu"))
    assert not isinstance(asked.value, NotEnoughMemoryError)
