"""transformers: eager `generate` over a static batch of equal lengths, its best case."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import PromptDict, Reply, Spec

_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def version() -> str:
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


class Model:
    """A model in eager mode with scaled-dot-product attention, the library's default."""

    def __init__(self, spec: Spec) -> None:
        torch.set_num_threads(spec["threads"])
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            os.fspath(spec["folder"]), dtype=_DTYPES[spec["variant"]], local_files_only=True
        )
        self._model = model.eval()

    @torch.inference_mode()
    def generate(self, prompts: list[PromptDict], count: int) -> Reply:
        ids = torch.tensor([prompt["ids"] for prompt in prompts])
        clock = _Clock()
        started = time.perf_counter()
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        total = time.perf_counter() - started
        generated = out[:, ids.shape[1] :]
        return {
            "first_s": clock.times[1] - started,  # the streamer sees the prompt first
            "total_s": total,
            "counts": [generated.shape[1]] * len(prompts),
            "ids": generated[0].tolist(),
        }


class _Clock:
    """A streamer that notes when the prompt and each step's tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """All tokens were put."""
