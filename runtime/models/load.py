"""From a model folder to a decoder that is ready to run."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.config import ModelConfig, read_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.device import choose_device, choose_dtype
from sirocco.runtime.models.registry import build_spec, find_architecture
from sirocco.runtime.models.spec import ModelSpec
from sirocco.runtime.weights import Target, load_weights, match_weights


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder with its weights; `weight_bytes` is what they occupy in memory."""

    model: Decoder
    spec: ModelSpec
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    load_seconds: float
    weight_bytes: int


def load_model(folder: Path, dtype: str = "auto", device: str = "auto", progress: bool = True) -> LoadedModel:
    """Load a Hugging Face folder. `dtype` and `device` are names or "auto"; `progress` shows a bar on a terminal.

    Raises `ModelLoadError` for everything that is wrong with the folder, before memory is taken for weights.
    """
    started = time.perf_counter()
    config = read_config(folder)
    _refuse_quantised(config)
    spec = build_spec(config)
    with Checkpoint(folder) as checkpoint:
        run_device = choose_device(device)
        model = Decoder(spec, run_device)
        names = find_architecture(config.architecture).names
        targets = match_weights(model, names, checkpoint)
        run_dtype = choose_dtype(dtype, config.dtype or _stored_dtype(targets, checkpoint), run_device)
        total = sum(checkpoint[part.name].num_bytes for target in targets for part in target.parts())
        with _progress(total, progress) as advance:
            load_weights(targets, checkpoint, run_dtype, run_device, advance)
    return LoadedModel(model, spec, config, run_dtype, run_device, time.perf_counter() - started, model.num_bytes)


def _refuse_quantised(config: ModelConfig) -> None:
    quantisation = config.fields.object("quantization_config")
    if quantisation is not None:
        method = quantisation.string("quant_method", "unknown method")
        raise ModelLoadError(f"the checkpoint is quantised ({method}), which is not supported")


def _stored_dtype(targets: list[Target], checkpoint: Checkpoint) -> str:
    """The dtype of the first weight, for a config that does not say."""
    first = next(targets[0].parts())
    return str(checkpoint[first.name].dtype).removeprefix("torch.")


@contextmanager
def _progress(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on stderr, or nothing where nobody is looking."""
    if not wanted or not sys.stderr.isatty():
        yield lambda num_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("load", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
