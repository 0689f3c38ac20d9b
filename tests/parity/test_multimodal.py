"""Models of several modalities give up their text part: against transformers' whole model on text alone."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
)
from transformers.utils import logging as transformers_logging

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.load import load_model
from sirocco.runtime.models.multimodal import MULTIMODAL
from sirocco.runtime.models.registry import architectures

from .families import SMALL, randomize
from .harness import run

SEEING = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def gemma3():
    text = Gemma3TextConfig(
        **SMALL | {"sliding_window": 21, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    )
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=SEEING, mm_tokens_per_image=4, image_token_index=209)
    )


def mistral3(tied=True):
    text = MistralConfig(**SMALL | {"sliding_window": None, "tie_word_embeddings": tied})
    vision = SEEING | {"model_type": "pixtral", "head_dim": 8}
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    return Mistral3ForConditionalGeneration(config)


CASES = {"gemma3": gemma3, "mistral3": mistral3, "mistral3-untied": lambda: mistral3(tied=False)}


@pytest.fixture(scope="module", params=CASES)
def published(request, tmp_path_factory):
    """A model with random weights, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = randomize(CASES[request.param]().float().eval())
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(200, (60,), generator=torch.Generator().manual_seed(5)).tolist()


def assert_same_logits(model, folder, prompt):
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    actual = run(load_model(folder, "float32", "cpu"), prompt, [40, 20])
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_logits_on_text(published, prompt, caplog):
    model, folder = published
    with caplog.at_level(logging.INFO, "sirocco.engine"):
        assert_same_logits(model, folder, prompt)
    (line,) = caplog.messages
    assert line.startswith(f"of this {type(model).__name__}, only the text model (")


def renamed(folder, target, rename):
    """A copy of a folder whose tensors are called otherwise."""
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


def test_newer_names_of_weights(published, prompt, tmp_path):
    def newer(name):
        if name.startswith("language_model.lm_head"):
            return name.removeprefix("language_model.")
        return "model." + name.replace("language_model.model", "language_model")

    model, folder = published
    assert_same_logits(model, renamed(folder, tmp_path, newer), prompt)


def test_only_known_parts_are_left_out(published, tmp_path):
    _, folder = published
    renamed(folder, tmp_path, lambda name: name.replace("vision_tower", "audio_tower"))
    with pytest.raises(ModelLoadError, match=r"unexpected \(audio_tower\."):
        load_model(tmp_path, device="cpu")


def test_a_head_that_neither_ties_nor_is_stored_is_missing(prompt, tmp_path):
    model = mistral3()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"1 missing \(lm_head\.weight\)"):
        load_model(tmp_path, device="cpu")


def test_text_models_are_known_and_tried():
    assert {text for whole in MULTIMODAL.values() for text in whole.texts.values()} <= architectures().keys()
    assert {type(make()).__name__ for make in CASES.values()} == MULTIMODAL.keys()
