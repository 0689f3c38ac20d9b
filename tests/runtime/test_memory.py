"""Memory for caches: planned to the byte, shared by groups of layers without overlap, and reported."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from sirocco.runtime.activations import step_bytes
from sirocco.runtime.blocks import BlockGroup, longest_request
from sirocco.runtime.build import assemble, gpu_kv_memory
from sirocco.runtime.config import make_config
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.memory import plan_memory
from sirocco.runtime.models.cache import allocate_pool, allocated_bytes
from sirocco.runtime.models.cache_spec import (
    CacheSpec,
    KvCacheSpec,
    LatentCacheSpec,
    StateCacheSpec,
    StateTensor,
    cache_layout,
)
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.models.registry import build_spec
from sirocco.runtime.wire import EngineOptions

FULL, WINDOW, SHORT = KvCacheSpec(2, 8), KvCacheSpec(2, 8, 40), KvCacheSpec(2, 8, 5)
WIDE_WINDOW = KvCacheSpec(3, 16, 40)
LATENT = LatentCacheSpec(12, 4)
STATE = StateCacheSpec((("conv", StateTensor((6, 3))), ("ssm", StateTensor((2, 4, 5), float32=True))))
NOTHING = CacheSpec()

MODELS = {
    "full": [FULL, FULL],
    "window": [WINDOW, NOTHING, WINDOW],
    "latent": [LATENT] * 3,
    "shapes-of-one-window": [FULL, KvCacheSpec(1, 4)],
    "alternating": [FULL, WINDOW] * 2,
    "mostly-windows": [WINDOW] * 5 + [FULL] * 2,
    "three-groups": [FULL, WINDOW, SHORT, SHORT, SHORT, NOTHING],
    "unlike-shapes": [FULL, WIDE_WINDOW, WIDE_WINDOW],
    "latent-beside-windows": [LATENT, WINDOW, WINDOW],
    "hybrid": [STATE, FULL, STATE],
    "hybrid-windows": [STATE, FULL, WINDOW, WINDOW],
    "recurrent": [STATE, STATE],
}


def plan_for(name, memory=60_000, **changes):
    settings = {"max_num_seqs": 3, "max_model_len": 10_000, "step": 32} | changes
    return plan_memory(MODELS[name], 16, 2, memory, **settings)


def allocate(plan, caches, dtype=torch.bfloat16):
    spec = SimpleNamespace(caches=tuple(caches))
    return allocate_pool(spec, plan.layout, plan.num_blocks, 16, dtype, "cpu", plan.num_states)


@pytest.mark.parametrize("name", MODELS)
def test_planned_bytes_are_those_of_the_tensors(name):
    plan = plan_for(name)
    report = plan.report(MODELS[name], 2)
    assert allocated_bytes(allocate(plan, MODELS[name])) == plan.total_bytes == report.total_bytes <= 60_000
    if plan.layout.block_bytes:
        assert 60_000 - plan.total_bytes < plan.layout.block_bytes, "no more is left than is too little for a block"
    by_token = report.full_bytes_per_token + report.window_bytes_per_token + report.latent_bytes_per_token
    assert by_token == sum(cache.bytes_per_token(2) for cache in MODELS[name])


@pytest.mark.parametrize("name", ["alternating", "mostly-windows", "three-groups", "unlike-shapes"])
def test_groups_share_a_pool_without_overlap(name):
    """Every plane of every S tokens of every block, the blocks dealt out in turn, holds what was written there."""
    plan, specs = plan_for(name), MODELS[name]
    caches = allocate(plan, specs)
    places = []
    for block in range(plan.num_blocks):
        group = plan.layout.groups[block % len(plan.layout.groups)]
        for offset in group.offsets:
            places += [
                (plane, block * group.stride + offset) for layer in group.layers for plane in caches[layer].tensors
            ]
    for number, (plane, unit) in enumerate(places):
        plane.view(torch.int16)[unit] = number
    for number, (plane, unit) in enumerate(places):
        assert bool((plane.view(torch.int16)[unit] == number).all())
    used = sum(
        len(group.offsets) * 16 * specs[layer].bytes_per_token(2)
        for group in plan.layout.groups
        for layer in group.layers
    )
    assert used <= len(plan.layout.groups) * plan.layout.block_bytes


def test_layers_that_look_equally_far_are_one_group():
    for name in ("full", "window", "latent", "shapes-of-one-window", "hybrid", "recurrent"):
        (group,) = cache_layout(MODELS[name], 16, 2).groups
        assert (group.blocks.block_tokens, group.stride, group.offsets) == (16, 1, (0,))
        assert all(not isinstance(MODELS[name][layer], StateCacheSpec) for layer in group.layers)
    assert cache_layout(MODELS["window"], 16, 2).groups[0].blocks.window == 40


def test_the_widest_group_has_the_smallest_blocks():
    windows, full = cache_layout(MODELS["mostly-windows"], 16, 2).groups
    assert (windows.blocks, windows.layers) == (BlockGroup(16, 40), (0, 1, 2, 3, 4))
    assert (full.blocks, full.layers) == (BlockGroup(32, None), (5, 6))  # five layers' bytes hold two twice


@pytest.mark.parametrize("block_tokens, window, step", [(4, None, 3), (4, 1, 1), (4, 6, 3), (16, 5, 40), (1, 7, 2)])
def test_blocks_for_bounds_what_a_request_holds(block_tokens, window, step):
    group = BlockGroup(block_tokens, window)
    for length in range(1, 120):
        held = 0
        for start in range(max(length - step, 0), length):  # the last step, from wherever it begins
            first = 0 if window is None else max(start - window + 1, 0) // block_tokens
            held = max(held, -(-length // block_tokens) - first)
        assert held <= group.blocks_for(length, step) <= held + 1


def test_longest_request_is_the_last_that_fits():
    groups = [BlockGroup(32), BlockGroup(16, 40)]
    for num_blocks in range(3, 60):
        length = longest_request(groups, num_blocks, 8, 1000)
        needs = [sum(group.blocks_for(n, 8) for group in groups) for n in (length, length + 1)]
        assert needs[0] <= num_blocks - 1 and (length == 1000 or needs[1] > num_blocks - 1)


def test_recurrent_states_leave_half_of_the_memory():
    state = sum(cache.bytes_per_request(2) for cache in MODELS["hybrid"])
    plan = plan_for("hybrid", memory=20 * state, max_num_seqs=64)
    assert plan.num_seqs == 10 and plan.num_snapshots == 2
    assert plan_for("hybrid", memory=20 * state, keep_states=False).num_snapshots == 0
    with pytest.raises(ModelLoadError, match=f"recurrent state of one request takes {state} bytes"):
        plan_for("hybrid", memory=2 * state - 1)


@pytest.mark.parametrize("name", ["full", "alternating", "three-groups"])
def test_too_little_memory_for_a_token(name):
    layout = cache_layout(MODELS[name], 16, 2)
    needed = (len(layout.groups) + 1) * layout.block_bytes
    assert plan_for(name, memory=needed).max_model_len >= 1
    with pytest.raises(ModelLoadError, match=f"of {needed - 1} bytes is too small: .* take {needed} bytes"):
        plan_for(name, memory=needed - 1)


GIB = 1 << 30


def test_a_gpu_keeps_room_for_a_step():
    assert gpu_kv_memory(100 * GIB, GIB) == 90 * GIB  # the share decides where there is plenty
    assert gpu_kv_memory(8 * GIB, GIB) == 8 * GIB - GIB * 5 // 4 - GIB // 2
    assert gpu_kv_memory(2 * GIB, GIB) == GIB  # a long step will fail, but short ones have their caches


@pytest.mark.parametrize(
    ("shape", "least", "most"),
    [("llama-3.2-1b", 0.5, 0.8), ("qwen3-0.6b", 0.2, 0.5), ("qwen3-30b-a3b", 1.0, 1.5)],
)
def test_what_a_step_takes_follows_from_the_widest_layer(shape, least, most):
    """Of 8192 tokens in bfloat16: the stream's tensors, and what the feed-forward makes of it before it is narrow."""
    spec = build_spec(make_config(SHAPES[shape]))
    assert least * GIB < step_bytes(spec, 8192, 64, 2) < most * GIB
    assert step_bytes(spec, 8192, 64, 2) - step_bytes(spec, 4096, 64, 2) == step_bytes(spec, 4096, 0, 2)


def test_a_mixed_model_reports_what_it_takes(monkeypatch, caplog):
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    changes = {"vocab_size": 512, "use_sliding_window": True, "sliding_window": 20, "layer_types": kinds}
    monkeypatch.setitem(SHAPES, "tiny", SHAPES["tiny"] | changes)
    loaded = random_model("tiny", "float32", "cpu")
    with caplog.at_level(logging.INFO, "sirocco.engine"):
        core, info = assemble(loaded, EngineOptions(max_num_seqs=4, kv_memory=1 << 20), "tiny")
    layer = 2 * 2 * 64 * 4  # keys and values, heads, their size, float32
    memory = info.memory
    assert (memory.full_bytes_per_token, memory.window_bytes_per_token) == (layer, 3 * layer)
    assert info.kv_bytes_per_token == 4 * layer
    assert memory.block_bytes == 16 * 3 * layer and memory.block_tokens == [16, 48]
    assert memory.total_bytes == allocated_bytes(core.runner.caches) == (1 << 20) // memory.block_bytes * 16 * 3 * layer
    blocks = (1 << 20) // memory.block_bytes - 1
    fits = math.ceil(memory.capacity_tokens / 16) + math.ceil(memory.capacity_tokens / 48)
    assert fits <= blocks < fits + 2
    assert info.max_model_len <= memory.capacity_tokens and memory.full_length_requests == 1
    assert f"{memory.total_bytes} bytes; a token takes {layer} bytes (full attention) + {3 * layer}" in caplog.text
    assert f"{memory.capacity_tokens} tokens fit" in caplog.text
