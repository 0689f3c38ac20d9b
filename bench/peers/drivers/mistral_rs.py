"""mistral.rs through its Python package: streams that are read by a thread each.

It takes text, tokenises it itself, and tells only how many tokens came.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import PromptDict, Reply, Spec

lib: Any = importlib.import_module("mistralrs")


def version() -> str:
    return f"mistralrs {metadata.version('mistralrs')}"


class Model:
    """A runner without a prefix cache, with room for as many sequences as will be asked for."""

    def __init__(self, spec: Spec) -> None:
        config = json.loads((Path(spec["folder"]) / "config.json").read_text())
        architectures = {"qwen3": lib.Architecture.Qwen3, "llama": lib.Architecture.Llama}
        dtypes = {"bf16": lib.ModelDType.BF16, "f32": lib.ModelDType.F32}
        which = lib.Which.Plain(
            model_id=spec["folder"], arch=architectures[config["model_type"]], dtype=dtypes[spec["variant"]]
        )
        self._runner = lib.Runner(which=which, max_seqs=spec["max_streams"], prefix_cache_n=0, token_source="none")

    def generate(self, prompts: list[PromptDict], count: int) -> Reply:
        started = time.perf_counter()
        readers = [_Reader(self._open(prompt["text"], count)) for prompt in prompts]
        for reader in readers:
            reader.thread.join()
        for reader, prompt in zip(readers, prompts, strict=True):
            reader.check(len(prompt["ids"]))
        return {
            "first_s": max(reader.first_at for reader in readers) - started,
            "total_s": max(reader.last_at for reader in readers) - started,
            "counts": [reader.completion_tokens for reader in readers],
            "ids": [],
        }

    def _open(self, text: str, count: int) -> Any:
        return self._runner.send_chat_completion_request(
            lib.ChatCompletionRequest(
                model="default", messages=text, max_tokens=count, stream=True, temperature=0.0, ignore_eos=True
            )
        )


class _Reader:
    """Reads one stream on a thread, since the package refuses a second blocking request while one runs."""

    def __init__(self, stream: Any) -> None:
        self.first_at = self.last_at = 0.0
        self.prompt_tokens = self.completion_tokens = 0
        self._stream = stream
        self._error: Exception | None = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def check(self, prompt_tokens: int) -> None:
        """Raise what the stream raised, or that the prompt was not read as the ids that the other engines get."""
        if self._error is not None:
            raise self._error
        if self.prompt_tokens != prompt_tokens:
            raise RuntimeError(f"the prompt of {prompt_tokens} tokens was read as {self.prompt_tokens}")

    def _read(self) -> None:
        try:
            for chunk in self._stream:
                self.last_at = time.perf_counter()
                if not self.first_at and chunk.choices:
                    self.first_at = self.last_at
                if (usage := getattr(chunk, "usage", None)) is not None:
                    self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        except Exception as error:  # an engine's error reaches the reader as an exception of the stream
            self._error = error
