"""Greedy tokens of the whole engine equal transformers', whatever the batch, chunking, caching, preemption and pipeline
depth.
"""

import pytest
import torch

from sirocco.runtime.build import BLOCK_SIZE, assemble
from sirocco.runtime.core import EngineCore
from sirocco.runtime.models.cache_spec import cache_layout
from sirocco.runtime.models.load import load_model
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling

from .families import CASES, save_model

NUM_TOKENS = 64
LENGTHS = [1, 3, 15, 16, 17, 31, 33, 40, 47, 48, 60, 64, 75, 90, 101, 120]


@pytest.fixture(
    scope="module", params=["llama-llama3", "mistral-window", "qwen2-layer-types", "qwen3-tied-head80-biases"]
)
def case(request, tmp_path_factory):
    """A loaded model, sixteen prompts, and what transformers says after each."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = save_model(CASES[request.param], folder)
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(1, 211, (max(LENGTHS),), generator=generator).tolist()
    prompts = [shared[:length] for length in LENGTHS]  # prefixes of one another: the cache has something to find
    expected = []
    for prompt in prompts:
        ids = reference.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False
        )
        expected.append(ids[0, len(prompt) :].tolist())
    return load_model(folder, "float32", "cpu"), prompts, expected


def make_core(loaded, depth=0, num_blocks=None, **options) -> EngineCore:
    """An engine over a pool of about `num_blocks` blocks, or of as many as it likes."""
    memory = None
    if num_blocks is not None:
        layout = cache_layout(loaded.spec.caches, BLOCK_SIZE, loaded.dtype.itemsize)
        memory = num_blocks * layout.block_bytes + options.get("max_num_seqs", 64) * layout.state_bytes
    core, _ = assemble(loaded, EngineOptions(kv_memory=memory, **options), "test")
    core.depth = depth
    return core


def complete(core, prompts, **sampling) -> dict[int, list[int]]:
    """Run the prompts side by side to their end."""
    tokens: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    settings = Sampling(**{"max_tokens": NUM_TOKENS, "temperature": 0.0} | sampling)
    for number, prompt in enumerate(prompts):
        core.apply(EngineRequest(number, prompt, settings))
    busy = True
    while busy:
        busy, outputs = core.step()
        for output in outputs:
            assert output.error is None
            tokens[output.id] += output.token_ids
    assert core.scheduler.pool.num_used == 0
    return tokens


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("chunk_size", [None, 5, 64])
def test_sixteen_at_once(case, depth, chunk_size):
    loaded, prompts, expected = case
    core = make_core(loaded, depth, max_num_seqs=16, chunk_size=chunk_size, prefix_caching=False)
    assert list(complete(core, prompts).values()) == expected


def test_one_at_a_time_then_from_the_prefix_cache(case):
    loaded, prompts, expected = case
    core = make_core(loaded, max_num_seqs=4)
    for _ in range(2):
        for prompt, tokens in zip(prompts[::5], expected[::5], strict=True):
            assert complete(core, [prompt])[0] == tokens
    stats, border = core.scheduler.stats(), core.scheduler.prefix.border
    assert stats.prefix_hits >= sum((len(prompt) - 1) // border * border for prompt in prompts[::5])


@pytest.mark.parametrize("depth", [0, 1])
def test_tiny_pool_forces_preemption(case, depth):
    loaded, prompts, expected = case
    core = make_core(loaded, depth, num_blocks=24, max_num_seqs=8)
    if all(group.window is not None for group in core.scheduler.groups):  # it makes do with less
        core = make_core(loaded, depth, num_blocks=12, max_num_seqs=8)
    assert list(complete(core, prompts[:8]).values()) == expected[:8]
    assert core.scheduler.stats().preemptions > 0


def test_sampled_tokens_do_not_depend_on_the_batch(case):
    loaded, prompts, _ = case
    sampling = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 11, "presence_penalty": 0.5}
    together = complete(make_core(loaded, 1, max_num_seqs=8, num_blocks=30), prompts[:8], **sampling)
    for number in (0, 3, 7):
        assert complete(make_core(loaded), [prompts[number]], **sampling)[0] == together[number]


def test_prompt_logprobs_equal_transformers(case):
    loaded, prompts, _ = case
    core = make_core(loaded, chunk_size=16)
    prompt = prompts[10]
    core.apply(EngineRequest(1, prompt, Sampling(max_tokens=1, temperature=0.0, logprobs=2, prompt_logprobs=3)))
    outputs = []
    while not outputs:
        _, outputs = core.step()
    scores = outputs[0].prompt_logprobs
    assert scores[0] is None and [score.token_id for score in scores[1:]] == prompt[1:]
    again = make_core(loaded)
    for position in (1, 15, 16, 17, 40):  # the logprob of a token is what a shorter prompt says about it
        again.apply(EngineRequest(position, prompt[:position], Sampling(max_tokens=1, temperature=0.0, logprobs=20)))
        first = []
        while not first:
            _, first = again.step()
        known = first[0].logprobs[0].top
        best = sorted(scores[position].top.items(), key=lambda item: -item[1])
        for token_id, logprob in best:
            assert known[token_id] == pytest.approx(logprob, abs=1e-4)


def test_a_failing_forward_ends_its_requests_and_the_engine_goes_on(case):
    loaded, prompts, expected = case
    core = make_core(loaded, 1, max_num_seqs=4)
    forward, core.runner.launch = core.runner.launch, _raise
    core.apply(EngineRequest(1, prompts[0], Sampling(max_tokens=4, temperature=0.0)))
    _, outputs = core.step()
    assert outputs[0].finish_reason == "error" and "memory" in outputs[0].error
    core.runner.launch = forward
    assert complete(core, prompts[:2])[1] == expected[1]


def _raise(plan):
    raise MemoryError
