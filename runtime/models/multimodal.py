"""Models of several modalities whose text part is one of the text models: where it lies, and what is left out.

Nothing here imports more than the standard library: configs are read with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What checkpoints put before the names of the text part's weights, in the older and in the newer way, and what the text
# model calls them itself.
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}


@dataclass(frozen=True, slots=True)
class Multimodal:
    """A class of models with a `text_config`.

    `texts` leads from the `model_type` in there to the class of the text model, `defaults` says what `text_config` may
    leave out, `others` how the names of the other parts' weights begin.
    """

    texts: Mapping[str, str]
    others: tuple[str, ...]
    defaults: Mapping[str, Any]


_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")

MULTIMODAL = {
    "Gemma3ForConditionalGeneration": Multimodal(
        {"gemma3_text": "Gemma3ForCausalLM"},
        _VISION,
        {
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
        },
    ),
    "Mistral3ForConditionalGeneration": Multimodal({"mistral": "MistralForCausalLM"}, _VISION, {}),
}
