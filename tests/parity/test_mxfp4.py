"""GPT-OSS with its experts in MXFP4, against transformers with the same experts expanded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.interleaved import Mxfp4Experts
from sirocco.runtime.models.load import load_model
from sirocco.runtime.weights import loadable_modules

from .families import save_model
from .harness import greedy, run
from .mixtures import gpt_oss

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def expanded(blocks, scales):
    """Blocks [E, N, G, 16] times scales [E, N, G] as [E, N, 32 G]."""
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2).long()
    values = torch.where(codes < 8, 1.0, -1.0) * E2M1[codes % 8]
    return (values * 2.0 ** (scales.double() - 127)[..., None]).flatten(-2).float()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mxfp4")
    reference = save_model(gpt_oss(intermediate_size=64), folder)
    tensors = load_file(folder / "model.safetensors")
    for i, layer in enumerate(reference.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            stacked = getattr(layer.mlp.experts, name)  # [E, columns, rows]
            experts, columns, rows = stacked.shape
            blocks = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            scales = torch.randint(121, 125, (experts, rows, columns // 32), dtype=torch.uint8)
            stacked.data = expanded(blocks, scales).transpose(1, 2).contiguous()
            prefix = f"model.layers.{i}.mlp.experts.{name}"
            del tensors[prefix]
            tensors |= {f"{prefix}_blocks": blocks, f"{prefix}_scales": scales}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return reference, folder


@pytest.fixture
def prompt():
    return torch.randint(211, (60,)).tolist()


def test_logits_and_tokens_equal_transformers(pair, prompt):
    reference, folder = pair
    loaded = load_model(folder, "float32", "cpu")
    with torch.no_grad():
        expected = reference(torch.tensor([prompt])).logits[0]
    for chunks in ([60], [37, 20, 1, 1, 1]):
        assert (run(loaded, prompt, chunks) - expected).abs().max() <= 1e-4 * expected.abs().max()
    tokens = reference.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, 60:].tolist()
    assert greedy(loaded, prompt, 48) == tokens


def test_experts_stay_in_their_blocks(pair):
    _, folder = pair
    loaded = load_model(folder, "bfloat16", "cpu")
    experts = [module for _, module in loadable_modules(loaded.model) if isinstance(module, Mxfp4Experts)]
    values, biases = 5 * (128 * 96 + 96 * 64), 5 * (128 + 96)
    assert [module.num_bytes for module in experts] == [values * 17 // 32 + 2 * biases] * 3


def test_sizes_that_blocks_do_not_divide_are_refused(pair, tmp_path):
    _, folder = pair
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="multiples of 32"):
        load_model(tmp_path, device="cpu")
