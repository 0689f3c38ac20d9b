"""DeepSeek checkpoints as they are published: in blocks of FP8, with layers that predict tokens after the next."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.cache import LatentCache, allocate_caches, allocated_bytes
from sirocco.runtime.models.load import load_model

from .families import save_model
from .harness import greedy, run
from .mixtures import deepseek_v3

BLOCK = 16


def quantised(values):
    """values [N, K] in FP8 by blocks, their scales, and what the two stand for."""
    sizes = [-(-size // BLOCK) for size in values.shape]
    padded = torch.zeros(sizes[0] * BLOCK, sizes[1] * BLOCK)
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.view(sizes[0], BLOCK, sizes[1], BLOCK)
    scales = blocks.abs().amax((1, 3)) / 448
    packed = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    expanded = (packed.float() * scales[:, None, :, None]).view(padded.shape)
    rows, columns = values.shape
    return packed.view(padded.shape)[:rows, :columns].contiguous(), scales, expanded[:rows, :columns].contiguous()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as DeepSeek-V3's, and transformers with the same weights expanded."""
    folder = tmp_path_factory.mktemp("deepseek")
    reference = save_model(deepseek_v3(num_nextn_predict_layers=1), folder)
    tensors = load_file(folder / "model.safetensors")
    expanded = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name], tensors[f"{name}_scale_inv"], expanded[name] = quantised(tensors[name])
    for name, parameter in reference.named_parameters():
        if name in expanded:
            parameter.data = expanded[name]
    for i, layer in enumerate(reference.model.layers):
        for e in range(12 if i else 0):
            prefix = f"model.layers.{i}.mlp.experts.{e}"
            gate_up = (expanded[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up"))
            layer.mlp.experts.gate_up_proj.data[e] = torch.cat(list(gate_up))
            layer.mlp.experts.down_proj.data[e] = expanded[f"{prefix}.down_proj.weight"]
    tensors["model.layers.3.eh_proj.weight"] = torch.randn(96, 192)
    save_file(tensors, folder / "model.safetensors")
    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    change_config(folder, quantization_config=quantisation)
    return reference, folder


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_logits_and_tokens_equal_transformers(published):
    reference, folder = published
    loaded, prompt = load_model(folder, "float32", "cpu"), torch.randint(211, (60,)).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt])).logits[0]
    for chunks in ([60], [37, 20, 1, 1, 1]):
        assert (run(loaded, prompt, chunks) - expected).abs().max() <= 1e-4 * expected.abs().max()
    tokens = reference.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, 60:].tolist()
    assert greedy(loaded, prompt, 48) == tokens


def test_caches_hold_latents_alone(published):
    spec = load_model(published[1], "bfloat16", "cpu").spec
    caches = allocate_caches(spec, 5, 8, torch.bfloat16, "cpu")
    assert all(isinstance(cache, LatentCache) for cache in caches)
    assert allocated_bytes(caches) == 5 * 8 * spec.cache_bytes_per_token(2) == 5 * 8 * 3 * (40 + 12) * 2


def test_layers_that_config_does_not_mention_are_refused(published, tmp_path):
    (tmp_path / "config.json").write_text((published[1] / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(published[1] / "model.safetensors")
    change_config(tmp_path, num_nextn_predict_layers=0)
    with pytest.raises(ModelLoadError, match="says 3 layers, the weights hold 4"):
        load_model(tmp_path, device="cpu")
