"""Recurrent state that is kept at a border and gone back to, and the memory that it takes."""

import pytest
import torch

from sirocco.kernels.mamba import StateBatch
from sirocco.runtime.models.cache import StateCache, allocate_caches, allocated_bytes
from sirocco.runtime.models.load import load_model

from .families import CASES, save_model
from .harness import Harness, run, tensors_of

BORDER, LENGTH = 32, 50


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    save_model(CASES["granite-hybrid"], folder)
    return load_model(folder, "float32", "cpu")


@pytest.fixture
def tokens():
    return torch.randint(211, (LENGTH,)).tolist()


def copy_states(harness, source, target):
    for cache in harness.caches:
        if isinstance(cache, StateCache):
            cache.copy(torch.tensor([source]), torch.tensor([target]))


def test_state_kept_at_a_border_serves_a_request_that_shares_the_prefix(loaded, tokens):
    harness = Harness(loaded, 2, LENGTH)
    first, second = harness.state_slots.tolist()
    harness.step([(0, tokens[:BORDER])])
    copy_states(harness, first, second)
    harness.block_table[1, : BORDER // 16] = harness.block_table[0, : BORDER // 16]  # shared blocks of the attention
    harness.lengths[1] = BORDER
    other = tokens[BORDER:][::-1]
    mixed = harness.step([(1, other), (0, tokens[BORDER:])])
    for logits, ending in zip(mixed, (other, tokens[BORDER:]), strict=True):
        torch.testing.assert_close(logits, run(loaded, tokens[:BORDER] + ending, [LENGTH])[BORDER:])


def test_rejected_drafts_are_undone_by_going_back(loaded, tokens):
    harness = Harness(loaded, 2, LENGTH)
    slot, spare = harness.state_slots.tolist()
    harness.step([(0, tokens[:BORDER])])
    copy_states(harness, slot, spare)
    harness.step([(0, tokens[BORDER - 5 : BORDER])])  # drafts that turn out wrong
    copy_states(harness, spare, slot)
    harness.lengths[0] = BORDER
    (logits,) = harness.step([(0, tokens[BORDER:])])
    torch.testing.assert_close(logits, run(loaded, tokens, [LENGTH])[BORDER:])


def test_a_request_that_begins_ignores_what_its_slot_holds(loaded, tokens):
    harness = Harness(loaded, 1, LENGTH)
    harness.step([(0, tokens)])
    harness.lengths[0] = 0
    (logits,) = harness.step([(0, tokens[:20])])
    torch.testing.assert_close(logits, run(loaded, tokens[:20], [20]))


def test_only_the_slots_of_the_step_change(loaded, tokens):
    harness = Harness(loaded, 3, LENGTH)
    harness.step([(0, tokens[:9]), (1, tokens[:1]), (2, tokens[:4])])
    kept = [cache for cache in harness.caches if isinstance(cache, StateCache)]
    before = [tensor.clone() for cache in kept for tensor in tensors_of(cache)]
    harness.step([(0, tokens[9:10]), (2, tokens[4:20])])
    changed = {int(harness.state_slots[sequence]) for sequence in (0, 2)}
    for old, new in zip(before, (tensor for cache in kept for tensor in tensors_of(cache)), strict=True):
        assert {slot for slot in range(3) if not torch.equal(old[slot], new[slot])} == changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_of_state_and_of_tokens(loaded, dtype):
    spec = loaded.spec
    caches = allocate_caches(spec, 4, 16, dtype, "cpu", num_states=3)
    by_token = allocated_bytes(cache for cache in caches if not isinstance(cache, StateCache))
    by_request = allocated_bytes(cache for cache in caches if isinstance(cache, StateCache))
    assert by_token == 4 * 16 * spec.cache_bytes_per_token(dtype.itemsize) > 0
    assert by_request == 3 * spec.cache_bytes_per_request(dtype.itemsize) > 0
    assert all(cache.tensors["ssm"].dtype == torch.float32 for cache in caches if isinstance(cache, StateCache))


def test_state_batch_is_worked_out_once(loaded):
    batch = StateBatch(torch.tensor([0, 1]), torch.tensor([True, False]), [1, 5])
    assert batch.shift(3) is batch.shift(3) and batch.runs is batch.runs
