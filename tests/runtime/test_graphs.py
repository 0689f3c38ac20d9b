"""Captured decode steps, with a capture that records a function and replays it into the tensor it once returned."""

import numpy as np
import pytest
import torch

from sirocco.runtime import graphs
from sirocco.runtime.build import assemble
from sirocco.runtime.graphs import row_buckets
from sirocco.runtime.models.cache import StateCache
from sirocco.runtime.models.random import SHAPES, random_model
from sirocco.runtime.warmup import warm_up
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling

from .tiny_models import FAMILIES

TINY = SHAPES["tiny"] | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", TINY)
        return random_model("tiny", "float32", "cpu")


def make(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, name, FAMILIES[name])
        return random_model(name, "float32", "cpu")


@pytest.fixture(scope="module", params=["hybrid", "recurrent"])
def with_states(request):
    return make(request.param)


@pytest.fixture
def few_captures(monkeypatch):
    """So few that most steps are padded."""
    monkeypatch.setattr(graphs, "row_buckets", lambda most: sorted({1, min(4, most), most}))


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
    warm_up(loaded.model, caches, 16, 256, max_model_len, torch.device("cpu"))
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
    vocab_size = loaded.spec.vocab_size
    waiting = [(id, rng.integers(0, vocab_size, int(rng.integers(1, 60))).tolist(), 3 + 5 * id) for id in range(9)]
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
def test_tokens_are_those_of_the_plain_runner(loaded, few_captures, depth, sampling):
    expected, _ = run(loaded, **sampling)
    capture = FakeCapture()
    tokens, runner = run(loaded, capture, depth, **sampling)
    assert tokens == expected
    assert set(capture.replays) == {1, 4, 6} and sum(capture.replays.values()) > 20
    assert runner.graph_misses == 0
    assert capture.captures == 3  # none while requests ran


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "dense"])
def test_every_family_says_what_it_says_uncaptured(few_captures, name):
    """With padding rows, slots that are taken again, requests that outgrow their rotary frequencies."""
    model = make(name)
    expected, _ = run(model)
    capture = FakeCapture()
    tokens, runner = run(model, capture, depth=1)
    assert tokens == expected
    assert runner.graph_misses == 0
    assert set(capture.replays) == {1, 4, 6} and sum(capture.replays.values()) > 20


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
        positions = np.array([0, 1, 2])
        hidden = runner._graphs.replay(np.array([0] * 3), positions, positions * 0, [48 + positions])
    assert hidden.shape[0] == 3 and bool(hidden.isfinite().all())
    for cache in runner.caches:
        untouched = torch.ones(cache.k.shape[0], 16, dtype=torch.bool)
        untouched[0, 0] = untouched[3, :3] = False
        assert bool((cache.k.transpose(1, 2)[untouched] == 7.0).all())
        assert not bool((cache.k.transpose(1, 2)[3, :3] == 7.0).any())


def complete(core, prompts):
    """Tokens of prompts one after the other."""
    tokens = []
    for id, prompt in enumerate(prompts):
        core.apply(EngineRequest(id, prompt, Sampling(max_tokens=9, temperature=0.0)))
        tokens.append([])
        busy = True
        while busy:
            busy, outputs = core.step()
            for output in outputs:
                assert output.error is None
                tokens[-1] += output.token_ids
    return tokens


def test_a_request_begins_without_the_state_that_another_left(with_states, few_captures):
    """In the only slot, from a prompt of one token, so that its first step is a captured one."""
    options = EngineOptions(max_num_seqs=1, kv_memory=1 << 20, prefix_caching=False)
    prompts = [list(range(1, 30)), [7], [8], [7]]
    expected = [complete(assemble(with_states, options, "test")[0], [prompt])[0] for prompt in prompts]
    core, _ = assemble(with_states, options, "test")
    core.runner.capture(capture := FakeCapture())
    core.depth = 1
    assert complete(core, prompts) == expected
    assert capture.replays[1] >= 8 + 3 * 9 and core.runner.graph_misses == 0


def test_kept_states_outlive_captured_steps(with_states, few_captures):
    """They lie behind nobody's slot, where padding rows leave theirs."""
    shared = list(range(1, 33))
    prompts = [[*shared, 40], [5, 6], [*shared, 41, 42], [*shared, 40]]
    options = EngineOptions(max_num_seqs=3, kv_memory=1 << 20)
    expected = [complete(assemble(with_states, options, "test")[0], [prompt])[0] for prompt in prompts]
    core, _ = assemble(with_states, options, "test")
    core.runner.capture(FakeCapture())
    core.runner._graphs._captures[:1] = []  # one row is padded too
    assert complete(core, prompts) == expected
    assert core.scheduler.stats().prefix_hits >= 2 * 32


def test_padding_rows_change_no_state_but_nobodys(with_states, few_captures):
    core, _ = assemble(with_states, EngineOptions(max_num_seqs=4, kv_memory=1 << 20), "test")
    runner = core.runner
    runner.capture(FakeCapture())
    states = [tensor for cache in runner.caches if isinstance(cache, StateCache) for tensor in cache.tensors.values()]
    for tensor in states:
        tensor.fill_(0.5)
        tensor[4] = torch.nan  # a padding row reads none
    with torch.inference_mode():
        positions = np.array([9, 0])
        hidden = runner._graphs.replay(np.array([2, 0]), positions, positions * 0, [48 + positions])
    assert hidden.shape[0] == 2 and bool(hidden.isfinite().all())
    for tensor in states:
        changed = {slot for slot, state in enumerate(tensor) if not bool((state == 0.5).all())}
        assert changed == {0, 2, 4} and bool(tensor.isfinite().all())
        assert len(tensor) > 5  # kept ones


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 64, 100, 256, 512, 2000])
def test_buckets_waste_little(most):
    buckets = row_buckets(most)
    assert buckets == sorted(set(buckets)) and buckets[-1] == min(most, 512)
    assert buckets[:8] == list(range(1, min(most, 8) + 1))
    for rows in range(1, buckets[-1] + 1):
        padded = next(bucket for bucket in buckets if bucket >= rows)
        assert padded - rows < max(8, rows / 4 + 1)
