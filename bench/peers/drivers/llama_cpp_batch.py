"""llama.cpp through the low-level calls of llama-cpp-python: one context, all sequences in each decode, as its server
does; greedy by argmax.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import PromptDict, Reply, Spec

lib: Any = importlib.import_module("llama_cpp")
_FEATURES = ("AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8", "NEON", "DOTPROD", "MATMUL_INT8", "SVE")
_BATCH = 2048  # tokens of one decode call
_keep: Any = lib.llama_log_callback(lambda level, text, data: None)  # ctypes does not hold callbacks
lib.llama_log_set(_keep, ctypes.c_void_p(0))


def version() -> str:
    features = lib.llama_print_system_info().decode()  # a build without the machine's instructions would be no match
    enabled = [name for name in _FEATURES if f"{name} = 1" in features]
    return f"llama-cpp-python {metadata.version('llama-cpp-python')} ({', '.join(enabled) or 'no vector features'})"


class Model:
    """The GGUF file beside the model folder, in a context with one cache for all sequences."""

    def __init__(self, spec: Spec) -> None:
        folder = Path(spec["folder"])
        path = folder.with_name(f"{folder.name}-{spec['variant']}.gguf")
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the GGUF file")
        settings = lib.llama_context_default_params()
        settings.n_ctx = spec["max_tokens"]
        settings.n_batch, settings.n_ubatch, settings.n_seq_max = _BATCH, 512, spec["max_streams"]
        settings.n_threads = settings.n_threads_batch = spec["threads"]
        settings.kv_unified = True
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = lib.llama_get_memory(self._context)
        self._vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(_BATCH, 0, 1)

    def generate(self, prompts: list[PromptDict], count: int) -> Reply:
        lib.llama_memory_clear(self._memory, True)
        started = time.perf_counter()
        rows = [
            (token, position, sequence, position == len(prompt["ids"]) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt["ids"])
        ]
        current = self._decode(rows)
        first = time.perf_counter()
        generated = [[token] for token in current]
        for step in range(count - 1):
            current = self._decode(
                [
                    (token, len(prompt["ids"]) + step, sequence, True)
                    for sequence, (token, prompt) in enumerate(zip(current, prompts, strict=True))
                ]
            )
            for tokens, token in zip(generated, current, strict=True):
                tokens.append(token)
        return {
            "first_s": first - started,
            "total_s": time.perf_counter() - started,
            "counts": [len(tokens) for tokens in generated],
            "ids": generated[0],
        }

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, sequence, whether its logits are wanted); the likeliest next tokens, in order."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if status := lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._likeliest(i) for i, row in enumerate(rows) if row[3]]

    def _likeliest(self, row: int) -> int:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, row), shape=(self._vocab_size,))
        return int(logits.argmax())
