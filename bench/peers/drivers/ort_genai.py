"""onnxruntime-genai: a static batch over the folder that its own builder made."""

from __future__ import annotations

import importlib
import json
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import PromptDict, Reply, Spec

lib: Any = importlib.import_module("onnxruntime_genai")


def version() -> str:
    return f"onnxruntime-genai {metadata.version('onnxruntime-genai')}"


class Model:
    """The built folder beside the model folder, with the wanted number of threads."""

    def __init__(self, spec: Spec) -> None:
        folder = Path(spec["folder"])
        built = folder.with_name(f"{folder.name}-ort-{spec['variant']}")
        path = built / "genai_config.json"
        config = json.loads(path.read_text())
        session = config["model"]["decoder"]["session_options"]
        if session.get("intra_op_num_threads") != spec["threads"]:
            session["intra_op_num_threads"] = spec["threads"]
            path.write_text(json.dumps(config, indent=2))
        self._model = lib.Model(str(built))

    def generate(self, prompts: list[PromptDict], count: int) -> Reply:
        ids = np.array([prompt["ids"] for prompt in prompts], np.int32)
        parameters = lib.GeneratorParams(self._model)
        parameters.set_search_options(max_length=ids.shape[1] + count, batch_size=len(prompts), do_sample=False)
        started = time.perf_counter()
        generator = lib.Generator(self._model, parameters)
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        ended = time.perf_counter()
        generated = [generator.get_sequence(i)[ids.shape[1] :] for i in range(len(prompts))]
        return {
            "first_s": first - started,
            "total_s": ended - started,
            "counts": [len(tokens) for tokens in generated],
            "ids": [int(token) for token in generated[0]],
        }
