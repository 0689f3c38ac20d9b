"""Captured decode steps, with a capture that records a function and replays it into the tensor it once returned."""

import numpy as np
import pytest
import torch

from sirocco.runtime import graphs
from sirocco.runtime.build import assemble
from sirocco.runtime.graphs import row_buckets
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.warmup import warm_up
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling

TINY = SHAPES["tiny"] | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", TINY)
        return random_model("tiny", "float32", "cpu")


class FakeCapture:
    """Every call captures; `replays` counts by number of rows."""

    def __init__(self):
        self.captures = 0
        self.replays = {}

    def __call__(self, step):
        self.captures += 1
        hidden = step()
        replays = self.replays

        class Replay:
            def replay(self):
                replays[len(hidden)] = replays.get(len(hidden), 0) + 1
                hidden.copy_(step())

        return Replay(), hidden


@pytest.mark.parametrize("max_model_len", [1, 30, 4096])
def test_warming_up_touches_the_null_block_alone(loaded, max_model_len):
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=4, kv_memory=1 << 20), "test")
    caches = core.runner.caches
    for cache in caches:
        cache.k.fill_(7.0)
        cache.v.fill_(7.0)
    warm_up(loaded.model, caches, 16, max_model_len, torch.device("cpu"))
    for cache in caches:
        assert bool((cache.k[1:] == 7.0).all() and (cache.v[1:] == 7.0).all())
        assert not bool((cache.k[0, :, 0] == 7.0).all())


def run(loaded, capture=None, depth=0, max_num_seqs=6, **sampling):
    """Tokens of requests that come and go, so that the number of rows changes and slots are taken again."""
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=max_num_seqs, kv_memory=1 << 20, chunk_size=32), "test")
    core.depth = depth
    if capture is not None:
        core.runner.capture(capture)
    rng = np.random.default_rng(0)
    tokens = {}
    waiting = [(id, rng.integers(0, 512, int(rng.integers(1, 60))).tolist(), 3 + 5 * id) for id in range(9)]
    busy = True
    while busy or waiting:
        if waiting:
            id, prompt, max_tokens = waiting.pop()
            tokens[id] = []
            settings = {"max_tokens": max_tokens, "temperature": 0.0} | sampling
            core.apply(EngineRequest(id, prompt, Sampling(**settings)))
        busy, outputs = core.step()
        for output in outputs:
            assert output.error is None
            tokens[output.id] += output.token_ids
    return tokens, core.runner


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5, "frequency_penalty": 0.5, "logprobs": 2}])
def test_tokens_are_those_of_the_plain_runner(loaded, depth, sampling):
    expected, _ = run(loaded, **sampling)
    capture = FakeCapture()
    tokens, runner = run(loaded, capture, depth, **sampling)
    assert tokens == expected
    assert set(capture.replays) >= {1, 4, 6} and sum(capture.replays.values()) > 20
    assert runner.graph_misses == 0
    assert capture.captures == len(row_buckets(6))  # none while requests ran


def test_every_group_of_layers_is_captured_over_its_own_tables(monkeypatch):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    mixed = {"num_hidden_layers": 3, "layer_types": kinds, "use_sliding_window": True, "sliding_window": 20}
    monkeypatch.setitem(SHAPES, "tiny", TINY | mixed)
    mixed = random_model("tiny", "float32", "cpu")
    expected, _ = run(mixed)
    capture = FakeCapture()
    tokens, runner = run(mixed, capture, depth=1)
    assert len(runner._tables) == 2
    assert tokens == expected
    assert runner.graph_misses == 0 and sum(capture.replays.values()) > 20


def test_a_step_that_no_capture_holds_runs_plainly_and_is_counted(loaded, monkeypatch):
    expected, plain = run(loaded)
    monkeypatch.setattr(graphs, "MAX_ROWS", 2)
    capture = FakeCapture()
    tokens, runner = run(loaded, capture)
    assert tokens == expected
    assert set(capture.replays) == {1, 2}
    assert runner.graph_misses > 0 and plain.graph_misses == 0


def test_misses_are_among_the_statistics(loaded):
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=4, kv_memory=1 << 20), "test")
    assert core.advance()[1].stats.graph_misses == 0
    core.runner.capture(FakeCapture())
    core.runner._graphs.misses = 3
    assert core.advance()[1].stats.graph_misses == 3


def test_padding_rows_write_to_the_null_block_alone(loaded):
    core, _ = assemble(loaded, EngineOptions(max_num_seqs=4, kv_memory=1 << 20), "test")
    runner = core.runner
    for cache in runner.caches:
        cache.k.fill_(7.0)
        cache.v.fill_(7.0)
    runner.capture(FakeCapture())
    with torch.inference_mode():
        runner._tables[0].device[0, 0] = 3
        hidden = runner._graphs.replay(np.array([0] * 3), np.array([0, 1, 2]), [np.array([48, 49, 50])])
    assert hidden.shape[0] == 3 and bool(hidden.isfinite().all())
    for cache in runner.caches:
        untouched = torch.ones(cache.k.shape[0], 16, dtype=torch.bool)
        untouched[0, 0] = untouched[3, :3] = False
        assert bool((cache.k.transpose(1, 2)[untouched] == 7.0).all())
        assert not bool((cache.k.transpose(1, 2)[3, :3] == 7.0).any())


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 64, 100, 256, 512, 2000])
def test_buckets_waste_little(most):
    buckets = row_buckets(most)
    assert buckets == sorted(set(buckets)) and buckets[-1] == min(most, 512)
    for rows in range(1, buckets[-1] + 1):
        padded = next(bucket for bucket in buckets if bucket >= rows)
        assert padded - rows < max(8, rows / 4 + 1)
