"""From options to an engine core: load the model, size the cache, wire scheduler and runner together."""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sirocco.kernels.attention import check_attention
from sirocco.kernels.bidirectional import check_bidirectional_attention
from sirocco.kernels.mamba import check_mamba
from sirocco.kernels.mla import check_latent_attention
from sirocco.runtime.activations import step_bytes
from sirocco.runtime.blocks import BlockPool
from sirocco.runtime.core import Core, EngineCore
from sirocco.runtime.embed_core import EmbedCore
from sirocco.runtime.embedding import is_embedder, load_embedder
from sirocco.runtime.errors import ModelLoadError, NotEnoughMemoryError, is_out_of_memory
from sirocco.runtime.graphs import CudaCapture, capturable
from sirocco.runtime.hub import model_id, resolve_model
from sirocco.runtime.invariant import InvariantRunner
from sirocco.runtime.memory import MemoryPlan, describe, plan_memory
from sirocco.runtime.models.cache import allocate_pool, touch
from sirocco.runtime.models.load import LoadedModel, load_model
from sirocco.runtime.models.spec import (
    AttentionSpec,
    BlockSpec,
    MambaSpec,
    MlaSpec,
    ModelSpec,
    regime_limit,
    rope_regime,
)
from sirocco.runtime.pace import Pace
from sirocco.runtime.prefix import PrefixCache
from sirocco.runtime.runner import ModelRunner
from sirocco.runtime.scheduler import Scheduler
from sirocco.runtime.sequence import Regimes
from sirocco.runtime.snapshots import Snapshots
from sirocco.runtime.system_limits import available_memory
from sirocco.runtime.warmup import warm_up
from sirocco.runtime.wire import EngineInfo, EngineOptions

logger = logging.getLogger("sirocco.engine")

BLOCK_SIZE = 16
CPU_KV_MEMORY = 4 << 30  # at most; and no more than a quarter of what is available
GPU_KV_SHARE = 0.9  # of what is free once the weights are loaded, at most
GPU_KV_LEAST = 0.5  # of it, however much a step may take
GPU_SLACK = 512 << 20  # for captured steps and the libraries' own
WARM_TOKENS = 1024  # of a text that is embedded before the first request: its attention is split
STEP_MARGIN = 1.25  # of what a step is estimated to take
TOKEN_BUDGET = {"cpu": 1024, "mps": 2048, "cuda": 8192}
CHUNK_SIZE = {"cpu": 256, "mps": 512, "cuda": 2048}  # of prompt beside decodes: what a running stream waits for


def build_engine(options: EngineOptions) -> tuple[Core, EngineInfo]:
    """Load the model that `options` names. Raises `ModelLoadError`."""
    try:
        return _build(options)
    except (MemoryError, RuntimeError) as error:  # torch's own are of the second kind
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError("there is not enough memory for the model and its caches") from error


def _build(options: EngineOptions) -> tuple[Core, EngineInfo]:
    folder = Path(options.folder) if options.folder else resolve_model(options.model)
    if is_embedder(folder, options.arch):
        return _build_embedder(folder, options)
    loaded = load_model(folder, options.dtype, options.device, options.progress, options.arch)
    return assemble(loaded, options, model_id(options.model))


def _build_embedder(folder: Path, options: EngineOptions) -> tuple[EmbedCore, EngineInfo]:
    started = time.perf_counter()
    embedder = load_embedder(folder, options.dtype, options.device, options.progress, options.arch)
    embedder = replace(embedder, max_len=min(embedder.max_len, options.max_model_len or embedder.max_len))
    model, device = embedder.backbone.model, embedder.backbone.device
    dtype = model.embed.weight.dtype
    _check_operators(model.spec.layers, dtype, device)
    if device.type == "cuda":  # so that no request waits for a compiler
        embedder.embed([[0], [0] * min(WARM_TOKENS, embedder.max_len)])
    info = EngineInfo(
        model=model_id(options.model),
        max_model_len=embedder.max_len,
        vocab_size=model.spec.vocab_size,
        block_size=0,
        num_blocks=0,
        kv_bytes_per_token=0,
        max_num_seqs=options.max_num_seqs,
        max_waiting=options.max_waiting,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        weight_bytes=embedder.num_bytes,
        load_seconds=time.perf_counter() - started,
        kind="embed",
    )
    return EmbedCore(embedder), info


def assemble(loaded: LoadedModel, options: EngineOptions, name: str) -> tuple[EngineCore, EngineInfo]:
    """An engine over a model that is in memory already. Raises `ModelLoadError` for what no kernel of it can do."""
    _check_operators(loaded.spec.layers, loaded.dtype, loaded.device)
    spec, device = loaded.spec, loaded.device.type
    chunk_size = options.chunk_size or CHUNK_SIZE[device]
    token_budget = max(TOKEN_BUDGET[device] if options.chunk_size is None else chunk_size, options.max_num_seqs)
    plan = _plan(loaded, token_budget, options)
    if plan.layout.state_bytes and options.batch_invariant:
        raise ModelLoadError("batch_invariant is not supported for models with recurrent layers")
    scheduler = _make_scheduler(plan, spec, token_budget, chunk_size, options.prefix_caching)
    runner = _make_runner(plan, loaded, chunk_size, options.batch_invariant)
    memory = plan.report(spec.caches, loaded.dtype.itemsize)
    for line in describe(memory):
        logger.info(line)
    info = EngineInfo(
        model=name,
        max_model_len=plan.max_model_len,
        vocab_size=spec.vocab_size,
        block_size=BLOCK_SIZE,
        num_blocks=plan.num_blocks,
        kv_bytes_per_token=spec.cache_bytes_per_token(loaded.dtype.itemsize),
        max_num_seqs=plan.num_seqs,
        max_waiting=options.max_waiting,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        weight_bytes=loaded.weight_bytes,
        load_seconds=loaded.load_seconds,
        memory=memory,
    )
    pace = Pace(torch.get_num_threads(), torch.set_num_threads) if device == "cpu" else None
    return EngineCore(scheduler, runner, depth=1 if device == "cuda" else 0, pace=pace), info


def _plan(loaded: LoadedModel, token_budget: int, options: EngineOptions) -> MemoryPlan:
    spec, memory = loaded.spec, options.kv_memory
    try:
        return plan_memory(
            spec.caches,
            BLOCK_SIZE,
            loaded.dtype.itemsize,
            _default_kv_memory(loaded, token_budget, options) if memory is None else memory,
            options.max_num_seqs,
            min(spec.max_model_len, options.max_model_len or spec.max_model_len),
            token_budget,
            options.prefix_caching,
        )
    except ModelLoadError as error:
        raise error if memory is not None else NotEnoughMemoryError(str(error)) from None


def _make_scheduler(
    plan: MemoryPlan, spec: ModelSpec, token_budget: int, chunk_size: int, prefix_caching: bool
) -> Scheduler:
    pool, groups, prefix = BlockPool(plan.num_blocks), plan.layout.block_groups, None
    if plan.layout.state_bytes == 0:
        prefix = PrefixCache(pool, groups, BLOCK_SIZE) if prefix_caching else None
    elif plan.num_snapshots:  # blocks say nothing about the state after them
        prefix = PrefixCache(pool, groups, BLOCK_SIZE, Snapshots(plan.num_snapshots, plan.snapshot_interval))
    return Scheduler(pool, groups, plan.num_seqs, token_budget, chunk_size, prefix, _regimes(spec))


def _make_runner(plan: MemoryPlan, loaded: LoadedModel, chunk_size: int, batch_invariant: bool) -> ModelRunner:
    """A runner over caches as planned, warm where its device compiles."""
    spec, device, layout = loaded.spec, loaded.device, plan.layout
    caches = allocate_pool(spec, layout, plan.num_blocks, BLOCK_SIZE, loaded.dtype, device, plan.num_states)
    make_runner = InvariantRunner if batch_invariant else ModelRunner
    runner = make_runner(loaded.model, caches, BLOCK_SIZE, plan.num_seqs, plan.max_model_len, device, layout.groups)
    if device.type == "cpu":
        touch(caches, TOKEN_BUDGET["cpu"] // BLOCK_SIZE)
    if device.type == "cuda":
        warm_up(loaded.model, caches, BLOCK_SIZE, chunk_size, plan.max_model_len, device)
        if capturable(device) and not batch_invariant:
            _capture(runner)
    return runner


def _capture(runner: ModelRunner) -> None:
    """Capture its decode steps; where the device refuses, say so and leave them to be launched kernel by kernel."""
    try:
        runner.capture(CudaCapture())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("decode steps cannot be captured, so that small ones take longer: %s", reason)
        runner.release_captures()


def _regimes(spec: ModelSpec) -> Regimes | None:
    if regime_limit(spec, 0) is None:
        return None
    return Regimes(partial(rope_regime, spec), partial(regime_limit, spec))


def gpu_kv_memory(free: int, step: int) -> int:
    """Bytes for caches on a GPU where `free` are left by the weights and a step may take about `step`."""
    return int(max(min(free * GPU_KV_SHARE, free - step * STEP_MARGIN - GPU_SLACK), free * GPU_KV_LEAST))


def _check_operators(layers: Iterable[BlockSpec], dtype: torch.dtype, device: torch.device) -> None:
    for mixer in {block.mixer for block in layers}:
        try:
            match mixer:
                case AttentionSpec(causal=False):
                    check_bidirectional_attention(mixer.head_dim, dtype, device)
                case AttentionSpec():
                    group = mixer.num_heads // mixer.num_kv_heads
                    check_attention(mixer.head_dim, dtype, BLOCK_SIZE, device, group)
                case MlaSpec():
                    check_latent_attention(mixer.rank, mixer.rope_dim, dtype, device)
                case MambaSpec():
                    check_mamba(mixer.state_size, mixer.conv_width, device)
        except ValueError as error:
            raise ModelLoadError(str(error)) from None


def _default_kv_memory(loaded: LoadedModel, token_budget: int, options: EngineOptions) -> int:
    device = loaded.device
    match device.type:
        case "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return gpu_kv_memory(
                free, step_bytes(loaded.spec, token_budget, options.max_num_seqs, loaded.dtype.itemsize)
            )
        case "mps":
            return int(torch.mps.recommended_max_memory() * GPU_KV_SHARE) - torch.mps.current_allocated_memory()
        case _:
            return min(CPU_KV_MEMORY, available_memory() // 4)
