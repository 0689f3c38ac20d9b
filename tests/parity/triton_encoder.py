"""Run in a process of its own by `test_triton_engine.py`: vectors of tiny embedders, and the kernels they launched."""

import json
import sys

import torch

from sirocco.runtime.config import make_config
from sirocco.runtime.embedding_backbone import make_backbone
from sirocco.runtime.weights import loadable_modules

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
MODELS = {
    "encoder": COMMON | {"architectures": ["MPNetModel"], "hidden_act": "gelu", "max_position_embeddings": 200},
    "decoder": COMMON
    | {
        "architectures": ["Gemma3TextModel"],
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
        "use_bidirectional_attention": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 16,
        "max_position_embeddings": 200,
    },
}
LENGTHS = [1, 7, 60]


def vectors(model: str) -> list[list[float]]:
    """The mean of each sequence's hidden states, of a model with random weights."""
    torch.manual_seed(0)
    backbone = make_backbone(make_config(MODELS[model]), torch.device("cpu"))
    for _, module in loadable_modules(backbone.model):
        slots = module.slots().items()
        module.assign({name: 0.3 * torch.randn(*slot.shape) for name, slot in slots})
    hidden = backbone.hidden(torch.randint(96, (sum(LENGTHS),)), LENGTHS)
    return [states.mean(0).tolist() for states in hidden.split(LENGTHS)]


def main() -> None:
    found = {model: vectors(model) for model in MODELS}
    launched: dict[str, int] = {}
    if "sirocco.kernels.triton.common" in sys.modules:
        from sirocco.kernels.triton.common import launches

        launched = launches()
    print(json.dumps({"vectors": found, "launches": launched}))


if __name__ == "__main__":
    main()
