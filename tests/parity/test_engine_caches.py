"""Models whose layers keep different things (windows beside full attention, recurrent state beside attention): the
engine's greedy tokens are those of the decoder alone, with hits in the prefix cache, preemption and mixed batches.
"""

import pytest
import torch

from sirocco.runtime.build import assemble
from sirocco.runtime.models.cache import StateCache, allocated_bytes
from sirocco.runtime.models.load import load_model
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling

from .families import CASES, save_model
from .harness import greedy

NUM_TOKENS = 24
SHARED = 70  # tokens that all prompts begin with: beyond the windows, and no border of blocks
TAILS = [1, 9, 20, 33]


def load(name, folder):
    save_model(CASES[name], folder)
    loaded = load_model(folder, "float32", "cpu")
    generator = torch.Generator().manual_seed(5)
    shared = torch.randint(1, 211, (SHARED,), generator=generator).tolist()
    prompts = [shared + torch.randint(1, 211, (tail,), generator=generator).tolist() for tail in TAILS]
    return loaded, prompts, [greedy(loaded, prompt, NUM_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module", params=["gemma3-window", "gpt-oss"])
def mixed(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["granite-hybrid", "granite-hybrid-dense"])
def hybrid(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


def make_core(loaded, depth, memory=1 << 22, **options):
    core, info = assemble(loaded, EngineOptions(kv_memory=memory, **{"max_num_seqs": 4} | options), "test")
    core.depth = depth
    assert info.memory.total_bytes == allocated_bytes(core.runner.caches) <= memory
    return core


def complete(core, prompts, ids):
    """Run prompts to their end; their tokens, and how many tokens of each were found in the cache."""
    settings = Sampling(max_tokens=NUM_TOKENS, temperature=0.0)
    tokens = {id: [] for id in ids}
    cached = dict.fromkeys(ids, 0)
    for id in ids:
        core.apply(EngineRequest(id, prompts[id], settings))
    busy = True
    while busy:
        busy, outputs = core.step()
        for output in outputs:
            assert output.error is None
            tokens[output.id] += output.token_ids
            cached[output.id] += output.cached_tokens
    assert core.scheduler.pool.num_used == 0
    return list(tokens.values()), list(cached.values())


@pytest.mark.parametrize("depth", [0, 1])
def test_windows_and_full_layers_share_prefixes(mixed, depth):
    loaded, prompts, expected = mixed
    core = make_core(loaded, depth)
    assert len(core.scheduler.groups) == 2 and core.scheduler.prefix.border == 32
    assert complete(core, prompts, [3]) == ([expected[3]], [0])
    tokens, cached = complete(core, prompts, [3, 0, 1, 2])
    assert tokens == [expected[number] for number in (3, 0, 1, 2)]
    assert cached == [96, 64, 64, 64]


@pytest.mark.parametrize(("depth", "chunk_size"), [(0, 7), (1, None)])
def test_windows_and_full_layers_are_preempted_together(mixed, depth, chunk_size):
    loaded, prompts, expected = mixed
    core = make_core(loaded, depth, chunk_size=chunk_size)
    assert complete_in_turn(core, prompts) == expected
    assert core.scheduler.stats().preemptions > 0


def test_windows_and_full_layers_with_batch_invariance(mixed):
    loaded, prompts, expected = mixed
    core = make_core(loaded, 0, batch_invariant=True, chunk_size=33)
    assert complete(core, prompts, [1, 2])[0] == expected[1:3]


@pytest.mark.parametrize("depth", [0, 1])
def test_recurrent_state_of_a_prefix_is_found_again(hybrid, depth):
    loaded, prompts, expected = hybrid
    core = make_core(loaded, depth)
    assert complete(core, prompts, [0]) == ([expected[0]], [0])
    tokens, cached = complete(core, prompts, [1, 0, 2, 3])
    assert tokens == [expected[number] for number in (1, 0, 2, 3)]
    assert cached == [64, 64, 64, 64], "the last border of the first prompt"
    tokens, cached = complete(core, prompts, range(4))
    assert (tokens, cached) == (expected, [64, 64, 80, 96])


@pytest.mark.parametrize(("depth", "chunk_size"), [(0, 7), (1, None)])
def test_recurrent_state_under_preemption_in_mixed_batches(hybrid, depth, chunk_size):
    loaded, prompts, expected = hybrid
    core = make_core(loaded, depth, chunk_size=chunk_size)
    assert complete_in_turn(core, prompts) == expected
    assert core.scheduler.stats().preemptions > 0


def complete_in_turn(core, prompts):
    """Each prompt comes two steps after the one before; for a while somebody else holds the blocks that are free."""
    pool, settings = core.scheduler.pool, Sampling(max_tokens=NUM_TOKENS, temperature=0.0)
    tokens = [[] for _ in prompts]
    busy, step, taken = True, 0, []
    while busy or taken:
        if step % 2 == 0 and step // 2 < len(prompts):
            core.apply(EngineRequest(step // 2, prompts[step // 2], settings))
        if step == 12:
            taken = pool.allocate(pool.num_free)
        elif step == 40:
            pool.free(taken)
            taken = []
        busy, outputs = core.step()
        for output in outputs:
            assert output.error is None
            tokens[output.id] += output.token_ids
        step += 1
    assert pool.num_used == 0
    return tokens


def test_states_are_not_kept_without_prefix_caching(hybrid):
    loaded, prompts, expected = hybrid
    core = make_core(loaded, 0, prefix_caching=False)
    states = [cache for cache in core.runner.caches if isinstance(cache, StateCache)]
    assert all(len(tensor) == 4 + 1 for cache in states for tensor in cache.tensors.values())  # one is nobody's
    for _ in range(2):
        assert complete(core, prompts, [2]) == ([expected[2]], [0])
