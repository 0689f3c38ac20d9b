"""Every family through the whole engine: greedy tokens equal transformers' without a cache, under chunks, company and
preemption.
"""

import pytest
import torch

from sirocco.runtime.models.load import load_model

from .families import CASES, save_model
from .mixtures import CASES as MIXTURES
from .test_engine import complete, make_core

NUM_TOKENS = 20
LENGTHS = [3, 18, 30, 41]  # over a border of blocks, over windows, and from both sides over an original context of 32
CHOSEN = [
    "gemma2-window",
    "gemma3-window",
    "phi2",
    "phi3-longrope",
    "glm4",
    "starcoder2-window",
    "smollm3",
]


@pytest.fixture(scope="module", params=[*CHOSEN, *MIXTURES])
def case(request, tmp_path_factory):
    """A loaded model, prompts, and what transformers says after each."""
    config = CASES.get(request.param) or MIXTURES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    reference = save_model(config, folder)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, 211, (length,), generator=generator).tolist() for length in LENGTHS]
    return load_model(folder, "float32", "cpu"), prompts, [uncached(reference, prompt) for prompt in prompts]


def uncached(model, prompt):
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(NUM_TOKENS):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 7, "num_blocks": 11, "max_num_seqs": 4}], ids=["whole", "tight"]
)
def test_greedy_tokens(case, options):
    loaded, prompts, expected = case
    core = make_core(loaded, 1, **options)
    for _ in range(2):  # the second time from the prefix cache
        assert list(complete(core, prompts, max_tokens=NUM_TOKENS).values()) == expected
