"""From a model folder to a decoder that is ready to run."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from sirocco.runtime.block_fp8 import BlockFp8Checkpoint, block_shape
from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.config import ModelConfig, read_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.host import release_memory
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.device import choose_device, choose_dtype
from sirocco.runtime.models.registry import build_spec, class_name, find_architecture
from sirocco.runtime.models.spec import ModelSpec, WeightNames
from sirocco.runtime.system_limits import total_memory
from sirocco.runtime.weights import Target, load_weights, match_weights

HEAD = "lm_head.weight"

logger = logging.getLogger("sirocco.engine")


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


def load_model(
    folder: Path, dtype: str = "auto", device: str = "auto", progress: bool = True, arch: str | None = None
) -> LoadedModel:
    """Load a Hugging Face folder. `dtype` and `device` are names or "auto"; `progress` shows a bar on a terminal;
    `arch` names an architecture in place of the one in config.json.

    Raises `ModelLoadError` for everything that is wrong with the folder, before memory is taken for weights.
    """
    started = time.perf_counter()
    config = read_config(folder, class_name(arch))
    known = find_architecture(config.architecture)
    refuse_quantised(config, (*known.formats, "fp8"))
    if config.whole is not None:
        logger.info("of this %s, only the text model (%s) is loaded", config.whole, config.architecture)
    spec = build_spec(config)
    run_device = choose_device(device)
    with _open(folder, config) as checkpoint:
        spec = _with_stored_head(spec, known.names, checkpoint)
        model = Decoder(spec, run_device)
        checkpoint.hide((*spec.unused_weights, *config.other_weights))
        run_dtype = read_weights(model, known.names, checkpoint, config, dtype, run_device, progress)
    return LoadedModel(model, spec, config, run_dtype, run_device, time.perf_counter() - started, model.num_bytes)


def read_weights(
    model: nn.Module,
    names: WeightNames,
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: str,
    device: torch.device,
    progress: bool,
) -> torch.dtype:
    """Fill a model from a checkpoint; returns the dtype it runs in.

    Raises as `match_weights` and `choose_dtype` do, and `ModelLoadError` for what no memory can hold.
    """
    targets = match_weights(model, names, checkpoint)
    run_dtype = choose_dtype(dtype, config.dtype or _stored_dtype(targets, checkpoint), device)
    if device.type == "cpu":
        _check_memory(targets, run_dtype)
    total = sum(checkpoint[part.name].num_bytes for target in targets for part in target.parts())
    with _progress(total, progress) as advance:
        load_weights(targets, checkpoint, run_dtype, device, _Releasing(advance))
    release_memory()
    return run_dtype


def _check_memory(targets: list[Target], dtype: torch.dtype) -> None:
    """Raise `ModelLoadError` for weights beyond all memory: the system would grant it, and end the process later on."""
    slots = [slot for target in targets for slot in target.module.slots().values()]
    needed = sum(math.prod(slot.shape) * (slot.dtype or dtype).itemsize for slot in slots)
    if needed > (held := total_memory()):
        name = str(dtype).removeprefix("torch.")
        raise ModelLoadError(
            f"the weights take {needed / 2**30:.1f} GiB in {name}, and there are {held / 2**30:.1f} GiB of memory"
        )


class _Releasing:
    """Gives the memory of weights back that were laid out anew, each time that this many bytes have been read."""

    BYTES = 256 << 20

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._read = 0

    def __call__(self, num_bytes: int) -> None:
        self._advance(num_bytes)
        self._read += num_bytes
        if self._read >= self.BYTES:
            self._read = 0
            release_memory()


def refuse_quantised(config: ModelConfig, formats: tuple[str, ...] = ()) -> None:
    """Raise `ModelLoadError` for a checkpoint that is quantised in none of these formats."""
    quantisation = config.fields.object("quantization_config")
    if quantisation is not None:
        method = quantisation.string("quant_method", "unknown method")
        if method not in formats:
            raise ModelLoadError(f"the checkpoint is quantised ({method}), which is not supported")


def _open(folder: Path, config: ModelConfig) -> Checkpoint:
    quantisation = config.fields.object("quantization_config")
    if quantisation is not None and quantisation.string("quant_method") == "fp8":
        return BlockFp8Checkpoint(folder, block_shape(quantisation), config.prefixes)
    return Checkpoint(folder, config.prefixes)


def _with_stored_head(spec: ModelSpec, names: WeightNames, checkpoint: Checkpoint) -> ModelSpec:
    """A head that is stored beside the embedding and differs from it is the head, even where the config says tied."""
    if not spec.tied_embeddings or HEAD not in checkpoint:
        return spec
    (embedding,) = (f"{source}.weight" for source in names["embed"])
    if embedding not in checkpoint or checkpoint.same(HEAD, embedding):
        return spec
    logger.warning("config.json says that the head is the embedding, but another one is stored: it is used")
    return replace(spec, tied_embeddings=False)


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
