"""With `batch_invariant` logits are bitwise equal alone and in company, in one piece and in chunks, in float32 and
bfloat16.
"""

import pytest
import torch

from sirocco.runtime.models.load import load_model

from .families import CASES, save_model
from .test_engine import complete, make_core

PROMPTS = [
    [(7 * number + step) % 200 + 3 for step in range(length)] for number, length in enumerate((5, 33, 64, 90, 17))
]


DENSE, EXPERTS = "qwen3-tied-head80-biases", "qwen3-moe"


@pytest.fixture(
    scope="module",
    params=[(DENSE, "float32"), (DENSE, "bfloat16"), (EXPERTS, "float32"), (EXPERTS, "bfloat16")],
    ids=str,
)
def loaded(request, tmp_path_factory):
    case, dtype = request.param
    folder = tmp_path_factory.mktemp("invariant")
    save_model(CASES[case], folder)
    return load_model(folder, dtype, "cpu")


def recorded(core) -> dict[tuple[int, int], torch.Tensor]:
    """Every row of logits that is sampled, by the request's seed and the new token's position."""
    rows = {}
    sample = core.runner.sampler.sample

    def record(logits, slots, positions):
        for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            rows[int(core.runner.sampler._seed[slot]), position] = logits[row].clone()
        return sample(logits, slots, positions)

    core.runner.sampler.sample = record
    return rows


def logits_of(loaded, prompts, **options):
    core = make_core(loaded, batch_invariant=True, **options)
    rows = recorded(core)
    complete(core, prompts, max_tokens=12, seed=0)
    return rows


def test_logits_are_bitwise_equal(loaded):
    alone = {}
    for number, prompt in enumerate(PROMPTS):
        for (_, position), row in logits_of(loaded, [prompt], prefix_caching=False).items():
            alone[number, position] = row
    from sirocco.runtime.wire import EngineRequest, Sampling

    for options in ({"chunk_size": 7}, {"num_blocks": 24, "max_num_seqs": 4}, {}):
        core = make_core(loaded, batch_invariant=True, **options)
        rows = recorded(core)
        for number, prompt in enumerate(PROMPTS):
            core.apply(EngineRequest(number, prompt, Sampling(max_tokens=12, temperature=0.0, seed=number)))
        while core.step()[0]:
            pass
        assert rows.keys() == alone.keys()
        for key, row in rows.items():
            assert torch.equal(row, alone[key]), (options, key)
