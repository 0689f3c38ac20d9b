"""From options to an engine core: load the model, size the cache, wire scheduler and runner together."""

import os
import time
from functools import partial
from pathlib import Path

import torch

from sirocco.kernels.attention import check_attention
from sirocco.runtime.blocks import BlockPool
from sirocco.runtime.core import Core, EngineCore
from sirocco.runtime.embed_core import EmbedCore
from sirocco.runtime.embedding import is_embedder, load_embedder
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.graphs import CudaCapture, capturable
from sirocco.runtime.hub import model_id, resolve_model
from sirocco.runtime.invariant import InvariantRunner
from sirocco.runtime.models.cache import allocate_caches
from sirocco.runtime.models.cache_spec import CacheSpec, KvCacheSpec
from sirocco.runtime.models.load import LoadedModel, load_model
from sirocco.runtime.models.spec import AttentionSpec, ModelSpec, regime_limit, rope_regime
from sirocco.runtime.runner import ModelRunner
from sirocco.runtime.scheduler import Scheduler
from sirocco.runtime.sequence import Regimes
from sirocco.runtime.warmup import warm_up
from sirocco.runtime.wire import EngineInfo, EngineOptions

BLOCK_SIZE = 16
CPU_KV_MEMORY = 4 << 30  # at most; and no more than a quarter of what is available
GPU_KV_SHARE = 0.9  # of what is free once the weights are loaded
TOKEN_BUDGET = {"cpu": 1024, "mps": 2048, "cuda": 8192}
CHUNK_SIZE = {"cpu": 256, "mps": 512, "cuda": 2048}  # of prompt beside decodes: what a running stream waits for


def build_engine(options: EngineOptions) -> tuple[Core, EngineInfo]:
    """Load the model that `options` names. Raises `ModelLoadError`."""
    folder = resolve_model(options.model)
    if is_embedder(folder):
        return _build_embedder(folder, options)
    loaded = load_model(folder, options.dtype, options.device, options.progress)
    return assemble(loaded, options, model_id(options.model))


def _build_embedder(folder: Path, options: EngineOptions) -> tuple[EmbedCore, EngineInfo]:
    started = time.perf_counter()
    embedder = load_embedder(folder, options.dtype, options.device, options.progress)
    info = EngineInfo(
        model=model_id(options.model),
        max_model_len=min(embedder.max_len, options.max_model_len or embedder.max_len),
        vocab_size=embedder.backbone.model.spec.vocab_size,
        block_size=0,
        num_blocks=0,
        kv_bytes_per_token=0,
        max_num_seqs=options.max_num_seqs,
        max_waiting=options.max_waiting,
        device=str(embedder.backbone.device),
        dtype=str(embedder.backbone.model.embed.weight.dtype).removeprefix("torch."),
        weight_bytes=embedder.num_bytes,
        load_seconds=time.perf_counter() - started,
        kind="embed",
    )
    return EmbedCore(embedder), info


def assemble(loaded: LoadedModel, options: EngineOptions, name: str) -> tuple[EngineCore, EngineInfo]:
    """An engine over a model that is in memory already. Raises `ModelLoadError` for what no kernel of it can do."""
    _check_operators(loaded)
    device = loaded.device.type
    max_model_len = min(loaded.spec.max_model_len, options.max_model_len or loaded.spec.max_model_len)
    token_bytes = loaded.spec.cache_bytes_per_token(loaded.dtype.itemsize)
    num_blocks = _num_blocks(options, loaded, token_bytes * BLOCK_SIZE, max_model_len)
    max_model_len = min(max_model_len, (num_blocks - 1) * BLOCK_SIZE)
    spec = loaded.spec
    is_recurrent = spec.cache_bytes_per_request(1) > 0
    if is_recurrent and options.batch_invariant:
        raise ModelLoadError("batch_invariant is not supported for models with recurrent layers")
    caches = allocate_caches(spec, num_blocks, BLOCK_SIZE, loaded.dtype, loaded.device, options.max_num_seqs)
    make_runner = InvariantRunner if options.batch_invariant else ModelRunner
    runner = make_runner(loaded.model, caches, BLOCK_SIZE, options.max_num_seqs, max_model_len, loaded.device)
    if device == "cuda" and capturable(spec):
        warm_up(loaded.model, caches, BLOCK_SIZE, max_model_len, loaded.device)
        if not options.batch_invariant:
            runner.capture(CudaCapture())
    chunk_size = options.chunk_size or CHUNK_SIZE[device]
    scheduler = Scheduler(
        BlockPool(num_blocks, BLOCK_SIZE),
        options.max_num_seqs,
        max(TOKEN_BUDGET[device] if options.chunk_size is None else chunk_size, options.max_num_seqs),
        chunk_size,
        options.prefix_caching and not is_recurrent,  # blocks say nothing about the state after them
        _regimes(spec),
        _window(spec),
    )
    info = EngineInfo(
        model=name,
        max_model_len=max_model_len,
        vocab_size=loaded.spec.vocab_size,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        kv_bytes_per_token=token_bytes,
        max_num_seqs=options.max_num_seqs,
        max_waiting=options.max_waiting,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        weight_bytes=loaded.weight_bytes,
        load_seconds=loaded.load_seconds,
    )
    return EngineCore(scheduler, runner, depth=1 if device == "cuda" else 0), info


def _regimes(spec: ModelSpec) -> Regimes | None:
    if regime_limit(spec, 0) is None:
        return None
    return Regimes(partial(rope_regime, spec), partial(regime_limit, spec))


def _window(spec: ModelSpec) -> int | None:
    """The most tokens that a layer looks back; None where some layer sees everything."""
    windows = [
        cache.window if isinstance(cache, KvCacheSpec) else None
        for cache in spec.caches
        if type(cache) is not CacheSpec
    ]
    return None if None in windows else max((window for window in windows if window is not None), default=None)


def _check_operators(loaded: LoadedModel) -> None:
    for mixer in {block.mixer for block in loaded.spec.layers}:
        if isinstance(mixer, AttentionSpec):
            try:
                group = mixer.num_heads // mixer.num_kv_heads
                check_attention(mixer.head_dim, loaded.dtype, BLOCK_SIZE, loaded.device, group)
            except ValueError as error:
                raise ModelLoadError(str(error)) from None


def _num_blocks(options: EngineOptions, loaded: LoadedModel, block_bytes: int, max_model_len: int) -> int:
    """How many blocks fit the memory, and no more than all sequences at full length could use."""
    memory = options.kv_memory if options.kv_memory is not None else _default_kv_memory(loaded.device)
    most = options.max_num_seqs * -(-max_model_len // BLOCK_SIZE) + 1
    num_blocks = min(memory // block_bytes, most)
    if num_blocks < 2:
        raise ModelLoadError(
            f"kv_memory of {memory} bytes is too small: a block of the cache takes {block_bytes} bytes"
        )
    return int(num_blocks)


def _default_kv_memory(device: torch.device) -> int:
    match device.type:
        case "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return int(free * GPU_KV_SHARE)
        case "mps":
            return int(torch.mps.recommended_max_memory() * GPU_KV_SHARE) - torch.mps.current_allocated_memory()
        case _:
            return min(CPU_KV_MEMORY, _available_memory() // 4)


def _available_memory() -> int:
    """Bytes that programs can still take: `MemAvailable` where Linux says, else all of physical memory."""
    try:
        with open("/proc/meminfo") as lines:
            found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        found = []
    return found[0] if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
