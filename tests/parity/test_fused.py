"""Layers as one call give bit by bit what their operators give."""

import pytest
import torch

from sirocco.kernels.native import ops
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.weights import loadable_modules

from .harness import Harness

pytestmark = pytest.mark.skipif(not ops.has_products(), reason="no C++ compiler")
SIZES = {
    "dtype": "bfloat16",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
FUSED = {
    "qk norm": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    "qkv bias": {"architectures": ["Qwen2ForCausalLM"]},
    "window": {"architectures": ["MistralForCausalLM"], "sliding_window": 20},
    "all biases, gelu": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "norms in float32": {"architectures": ["GemmaForCausalLM"], "head_dim": 32},
    "partly turned": {"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.5, "pad_token_id": 0},
}
NOT_FUSED = {
    "norms after": {"architectures": ["Gemma2ForCausalLM"], "head_dim": 16, "query_pre_attn_scalar": 16},
    "float32": {"architectures": ["LlamaForCausalLM"], "dtype": "float32"},
    "erf": {"architectures": ["LlamaForCausalLM"], "hidden_act": "gelu"},
    "no gate": {"architectures": ["Starcoder2ForCausalLM"], "hidden_act": "gelu_pytorch_tanh"},
}


def harnesses(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]) -> tuple[Harness, Harness]:
    """The same model twice, the second with its layers fused."""
    monkeypatch.setitem(SHAPES, "changed", SIZES | changes)
    loaded = random_model("changed", "auto", "cpu")
    generator = torch.Generator().manual_seed(5)
    for _, module in loadable_modules(loaded.model):
        for tensor in (getattr(module, name, None) for name in ("weight", "bias")):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    apart, together = Harness(loaded, 3, 128, 8), Harness(loaded, 3, 128, 8)
    loaded.model.fuse(together.caches)
    return apart, together


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_equal_their_operators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, together = harnesses(monkeypatch, FUSED[name])
    assert all(together.model._fused)
    steps = [
        [(0, list(range(40))), (1, [7])],
        [(0, [5]), (2, list(range(60, 95))), (1, [8, 9])],
        [(2, [1]), (1, [2]), (0, [3])],
        [(1, [4])],
    ]
    for step in steps:
        for expected, got in zip(apart.step(step), together.step(step), strict=True):
            assert torch.equal(expected, got)
    for expected, got in zip(apart.stored(), together.stored(), strict=True):
        assert torch.equal(expected.view(torch.int16), got.view(torch.int16))


def test_fused_layers_leave_the_callers_embeddings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    apart, together = harnesses(monkeypatch, FUSED["qk norm"])
    embeddings = apart.model.embed(torch.arange(9))
    given = embeddings.clone()
    (expected,), (got,) = apart.step([(0, embeddings)]), together.step([(0, given)])
    assert torch.equal(expected, got)
    assert torch.equal(embeddings, given)


def test_inputs_of_other_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = harnesses(monkeypatch, FUSED["qk norm"])
    for wrong in (torch.zeros(5, 32), torch.zeros(5, 128), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"embeddings of shape .* for a model of width 64"):
            together.step([(0, wrong)])
    batch, ids = together.batch([(0, [1] * 5)]), torch.arange(5)
    for positions, slots in ((ids[:4], ids + 8), (ids, ids[:4] + 8), (ids, torch.arange(8, 16))):
        with pytest.raises(ValueError, match="5 inputs at"):
            together.model(ids, positions, batch, slots, together.caches)


def test_steps_with_padding_and_embeddings_in_float32_are_as_without_fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    apart, together = harnesses(monkeypatch, FUSED["qk norm"])
    embeddings = apart.model.embed(torch.arange(5)).float()
    (expected,), (got,) = apart.step([(0, embeddings)]), together.step([(0, embeddings)])
    assert torch.equal(expected, got)
    batch = apart.batch([(0, [1] * 5)])
    padded = torch.tensor([*range(5), 0, 0])
    slots = torch.tensor([*range(8, 13), -1, -1])
    first, second = (h.model(padded, padded, batch, slots, h.caches) for h in (apart, together))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", NOT_FUSED)
def test_other_layers_run_operator_by_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = harnesses(monkeypatch, NOT_FUSED[name])
    assert not any(together.model._fused)
