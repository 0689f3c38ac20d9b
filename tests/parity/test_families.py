"""Every family against transformers in float32, and against itself however the tokens are cut and batched."""

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sirocco.runtime.models.load import load_model
from sirocco.runtime.models.registry import architectures

from .families import CASES, save_model, weights_of
from .harness import Harness, greedy, run, tensors_of

PROMPT_LEN = 75  # longer than four blocks of 16, than every window and than every original context
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """The same weights in transformers and in our decoder."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = save_model(CASES[request.param], folder)
    return reference, load_model(folder, "float32", "cpu")


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(211, (PROMPT_LEN,), generator=torch.Generator().manual_seed(5)).tolist()


def assert_logits_close(actual, expected):
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


def reference_logits(model, tokens):
    with torch.no_grad():
        model(torch.tensor([tokens[:1]]))  # dynamic rope keeps the base of the longest sequence until a short one comes
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("length", [1, 16, 17, PROMPT_LEN])
def test_logits_equal_transformers(pair, prompt, length):
    reference, loaded = pair
    assert_logits_close(run(loaded, prompt[:length], [length]), reference_logits(reference, prompt[:length]))


@pytest.mark.parametrize("block_size", [8, 32])
def test_two_chunks_and_single_tokens_equal_one_pass(pair, prompt, block_size):
    reference, loaded = pair
    chunks = [37, 30] + [1] * (PROMPT_LEN - 67)
    assert_logits_close(run(loaded, prompt, chunks, block_size), reference_logits(reference, prompt))


def test_sequences_of_one_step_do_not_see_each_other(pair, prompt):
    reference, loaded = pair
    sequences = [prompt[:40], prompt[10:33], prompt[5:]]
    harness = Harness(loaded, len(sequences), PROMPT_LEN).expect([len(tokens) for tokens in sequences])
    harness.step([(0, sequences[0][:39]), (2, sequences[2][:20])])
    mixed = harness.step([(0, sequences[0][39:]), (1, sequences[1]), (2, sequences[2][20:])])
    for logits, tokens in zip(mixed, sequences, strict=True):
        assert_logits_close(logits, reference_logits(reference, tokens)[-len(logits) :])


def test_greedy_tokens_equal_transformers(pair, prompt):
    reference, loaded = pair
    expected = reference.generate(torch.tensor([prompt[:30]]), max_new_tokens=64, do_sample=False, use_cache=False)[
        0, 30:
    ].tolist()
    assert greedy(loaded, prompt[:30], 64) == expected


def test_embeddings_as_input_equal_token_ids(pair, prompt):
    _, loaded = pair
    embedded = loaded.model.embed(torch.tensor(prompt))
    expected = Harness(loaded, 1, PROMPT_LEN).step([(0, prompt)])[0]
    harness = Harness(loaded, 1, PROMPT_LEN)
    assert torch.equal(harness.step([(0, embedded)])[0], expected)


def test_padding_rows_write_nothing(pair, prompt):
    """A negative slot is padding, as the rows that fill up a captured graph."""
    _, loaded = pair
    harness = Harness(loaded, 1, PROMPT_LEN)
    expected = harness.step([(0, prompt[:30])])[0]
    before = [tensor.clone() for tensor in harness.stored_by_token()]
    ids, positions, slots = torch.tensor(prompt[:2]), torch.tensor([28, 29]), torch.tensor([-1, -1])
    pending = [(0, prompt[:2])]
    loaded.model(ids, positions, harness.batch(pending), slots, harness.caches, harness.states(pending))
    for tensor, kept in zip(harness.stored_by_token(), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), kept.nan_to_num())
    assert not expected.isnan().any()


def test_weights_take_what_their_parameters_need(pair):
    reference, loaded = pair
    count = sum(weight.numel() for _, weight in weights_of(reference))
    assert loaded.weight_bytes == 4 * count


@pytest.mark.parametrize("name", ["llama-biases-head80", "qwen2", "qwen3-tied-head80-biases", "mistral-window"])
def test_bfloat16_agrees_where_the_margin_is_clear(name, prompt, tmp_path):
    save_model(CASES[name], tmp_path)
    exact = run(load_model(tmp_path, "float32", "cpu"), prompt, [PROMPT_LEN])
    loaded = load_model(tmp_path, "bfloat16", "cpu")
    rounded = run(loaded, prompt, [37, PROMPT_LEN - 37])
    top = exact.topk(2).values
    clear = top[:, 0] - top[:, 1] > 0.1 * exact.abs().max()  # three bfloat16 layers are off by 2 % of the largest logit
    assert clear.sum() > PROMPT_LEN // 10
    assert torch.equal(rounded.argmax(-1)[clear], exact.argmax(-1)[clear])


WINDOWED = ["mistral-window", "gemma2-window", "gemma3-window", "starcoder2-window"]


def after_the_window(loaded, prompt, block_size, left_behind=None):
    """Logits of tokens 60 to 70 once the blocks that left each layer's window hold `left_behind`."""
    harness = Harness(loaded, 1, PROMPT_LEN, block_size)
    harness.step([(0, prompt[:60])])
    for block, cache in zip(loaded.spec.layers, harness.caches, strict=True):
        left = 0 if block.mixer.window is None else (60 - block.mixer.window + 1) // block_size
        assert left > 0 or block.mixer.window is None
        for tensor in tensors_of(cache) if left_behind is not None else ():
            tensor[harness.block_table[0, :left].long()] = left_behind
    return harness.step([(0, prompt[60:70])])[0]


@pytest.mark.parametrize("name", WINDOWED)
def test_blocks_that_left_the_window_are_not_read(name, prompt, tmp_path):
    """So they can be given back, layer by layer."""
    reference = save_model(CASES[name], tmp_path)
    logits = after_the_window(load_model(tmp_path, "float32", "cpu"), prompt, 8, float("nan"))
    assert_logits_close(logits, reference_logits(reference, prompt[:70])[60:])


@pytest.mark.parametrize("name", WINDOWED)
def test_blocks_that_left_the_window_are_not_read_in_bfloat16(name, prompt, tmp_path):
    save_model(CASES[name], tmp_path)
    loaded = load_model(tmp_path, "bfloat16", "cpu")
    assert torch.equal(after_the_window(loaded, prompt, 16, float("nan")), after_the_window(loaded, prompt, 16))


def test_every_architecture_is_among_the_cases():
    known = architectures()
    tried = {known[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]].build for config in CASES.values()}
    assert tried == {architecture.build for architecture in known.values()}
