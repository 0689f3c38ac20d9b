"""transformers on the same random weights as `random_model` makes, with the experts computed in a chosen way.

Its CPU settings otherwise are those of the peers' comparison: eager, scaled-dot-product attention, a static batch of
equal lengths with a cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor

from sirocco.bench.peers.drivers import hf_transformers
from sirocco.runtime.models.random import POOL_SIZE, SHAPES

if TYPE_CHECKING:
    from sirocco.bench.moe.drivers.spec import MoeSpec

version = hf_transformers.version

_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
_KINDS = {"Qwen3MoeForCausalLM": "qwen3_moe"}
_PROMPT_EXPERTS = {"batched_mm": "grouped_mm"}  # a copy of the weights for every token of a prompt fits no memory


class Model(hf_transformers.Model):
    """A model that is built without storage, then filled: drawing billions of weights takes minutes."""

    def __init__(self, spec: MoeSpec) -> None:
        torch.set_num_threads(spec["threads"])
        self._model = make_model(SHAPES[spec["shape"]], _DTYPES[spec["variant"]])
        _set_experts(self._model, spec["experts"])


def make_model(geometry: dict[str, Any], dtype: torch.dtype) -> Any:
    """`geometry` with the weights of `random_model`, of which only the float32 router is held in `dtype` here."""
    fields = {name: value for name, value in geometry.items() if name not in ("architectures", "dtype")}
    api: Any = transformers
    config = api.AutoConfig.for_model(_KINDS[geometry["architectures"][0]], **fields, eos_token_id=None)
    with torch.device("meta"):
        model = api.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.to_empty(device="cpu").eval()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)  # its frequencies are no weights
    _fill(model)
    return model


@torch.inference_mode()
def _fill(model: Any) -> None:
    pool = torch.randn(POOL_SIZE, generator=torch.Generator().manual_seed(0))
    grouped = [
        [getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv"] for layer in model.model.layers
    ]  # one matrix in our engine
    seen = {id(matrix) for group in grouped for matrix in group}
    grouped += [[weight] for weight in model.parameters() if id(weight) not in seen]
    for group in grouped:
        if group[0].dim() == 1:
            group[0].fill_(1)
            continue
        scaled = (pool / math.sqrt(group[0].shape[-1])).to(group[0].dtype)
        begin = 0
        for matrix in group:
            _fill_from(scaled, matrix.view(-1), begin)
            begin += matrix.numel()


def _fill_from(pool: Tensor, flat: Tensor, begin: int) -> None:
    """Write the endless repetition of `pool` from its item `begin` on."""
    done = 0
    while done < flat.numel():
        at = (begin + done) % POOL_SIZE
        chunk = pool[at : at + flat.numel() - done]
        flat[done : done + chunk.numel()].copy_(chunk)
        done += chunk.numel()


def _set_experts(model: Any, experts: str) -> None:
    """Compute experts so, and a prompt's in the way of `_PROMPT_EXPERTS` where that is another one.

    transformers changes over in the same manner on a GPU.
    """
    prompt_experts = _PROMPT_EXPERTS.get(experts, experts)
    model.set_experts_implementation(prompt_experts)
    if prompt_experts == experts:
        return

    def choose(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        wanted = prompt_experts if kwargs["input_ids"].shape[1] > 1 else experts
        if model.get_experts_implementation()[""] != wanted:
            model.set_experts_implementation(wanted)

    model.register_forward_pre_hook(choose, with_kwargs=True)
