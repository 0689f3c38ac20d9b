"""Builds the folder that onnxruntime-genai reads, with the builder that comes with it."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import Spec

for _needed in ("onnxruntime_genai", "onnx", "onnx_ir", "torch", "transformers"):
    importlib.import_module(_needed)


def prepare(spec: Spec) -> None:
    """Four-bit weights in blocks of 32 whose activations are quantised too, its fastest form on CPUs; nothing when the
    folder is there and younger than the weights.
    """
    folder = Path(spec["folder"])
    built = folder.with_name(f"{folder.name}-ort-{spec['variant']}")
    weights = folder / "model.safetensors"
    if built.exists() and built.stat().st_mtime >= weights.stat().st_mtime:
        return
    partial = built.with_name(built.name + ".part")
    for leftover in (built, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    paths = ["-i", str(folder), "-o", str(partial), "-c", str(partial / "cache")]
    kind = ["-p", spec["variant"], "-e", "cpu", "--extra_options", "int4_accuracy_level=4"]
    subprocess.run([*builder, *paths, *kind], check=True, stdout=sys.stderr)
    partial.rename(built)
