"""The kernels against the definition, which is itself held against a sorted float64 reference, and against that too."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sirocco.kernels.sampling import philox_uniform, sample, sample_torch
from sirocco.kernels.triton import sampling
from sirocco.kernels.triton.common import launch, recording

from ..test_sampling import Column, inverted, kept_probabilities, params
from .conftest import Launching

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of infinities

FILTERS: list[dict[str, Column]] = [
    {},
    {"min_p": 0.05},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 300},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 4.0, "top_p": 0.95},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("vocab_size", [3, 2301])
def test_as_defined(launching: Launching, options: dict[str, Column], vocab_size: int) -> None:
    rows = 3
    logits = 2 * torch.randn(rows, 2 * vocab_size)[:, ::2].contiguous()
    arguments = params(rows, **options)
    kernels = ["chunks_kernel", "draw_kernel"]
    if arguments.uses_min_p:
        kernels += ["min_p_kernel"]
    if arguments.uses_top_k or arguments.uses_top_p:
        kernels += ["bound_kernel", "collect_kernel"]
    with launching(*kernels):
        tokens = sample(logits, arguments)
    assert torch.equal(tokens, sample_torch(logits, arguments))
    u = philox_uniform(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    numbers = [float(value) for value in full.values() if not isinstance(value, list)]
    for row in range(rows):
        probabilities = kept_probabilities(logits[row], numbers[0], int(numbers[1]), *numbers[2:])
        assert tokens[row] == inverted(probabilities, u[row].item())


@pytest.mark.parametrize("options", FILTERS[3:], ids=str)
def test_rows_that_candidates_do_not_settle(monkeypatch: pytest.MonkeyPatch, options: dict[str, Column]) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", 16)
    logits = 3 * torch.randn(2, 700)
    assert torch.equal(sample(logits, params(2, **options)), sample_torch(logits, params(2, **options)))


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """How many chunks, and how many candidates, each row of each draw with filters had."""
    counts: list[tuple[Tensor, Tensor]] = []

    def launch_and_count(kernel: object, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        launch(kernel, grid, *arguments, **options)
        if kernel is sampling._collect_kernel:
            _, _, _, num_hot, count, *_ = arguments
            counts.append((num_hot, count))

    monkeypatch.setattr(sampling, "launch", launch_and_count)
    return counts


def test_few_allowed_tokens_are_all_candidates(
    monkeypatch: pytest.MonkeyPatch, gathered: list[tuple[Tensor, Tensor]]
) -> None:
    """After a grammar's mask the rest of a row is -inf, which must not fill the candidates."""
    monkeypatch.setattr(sampling, "CANDIDATES", 16)
    logits = torch.full((3, 700), -torch.inf)
    logits[:, 40::60] = torch.randn(3, 11)
    arguments = params(3, top_k=[50, 0, 4], top_p=[1.0, 0.9, 0.7])
    assert torch.equal(sample(logits, arguments), sample_torch(logits, arguments))
    [(_, count)] = gathered
    assert count.max() <= 11


def test_few_chunks_are_read_again(gathered: list[tuple[Tensor, Tensor]]) -> None:
    """Rows without top-k and top-p none, others as many as k or as reach p by their bests."""
    logits = torch.randn(4, 8000)
    logits[:, [70, 900, 7998]] = torch.tensor([14.0, 12.0, 13.0])
    arguments = params(4, top_k=[0, 0, 5, 3], top_p=[1.0, 0.95, 1.0, 1.0], temperature=[1.0, 1.0, 1.0, 0.0])
    assert torch.equal(sample(logits, arguments), sample_torch(logits, arguments))
    [(num_hot, count)] = gathered
    assert num_hot.tolist() == [0, 3, 5, 0]
    assert count.tolist()[:2] == [0, 3] and count[2] >= 5


def test_one_pass_over_all_logits() -> None:
    logits = torch.empty(2, 3000, device="meta")
    for options, further in (
        ({"temperature": 0.0, "min_p": 0.1, "top_k": 3}, []),
        ({}, []),
        ({"min_p": 0.1}, ["min_p_kernel"]),
        ({"top_p": 0.9}, ["bound_kernel", "collect_kernel"]),
    ):
        with recording() as launches:
            sampling.sample(logits, params(2, **options))
        assert [launch.name for launch in launches] == ["chunks_kernel", *further, "draw_kernel"]


def test_chunks_of_unlike_weight() -> None:
    """Draws from chunks whose bests lie up to forty temperatures below the row's."""
    rows, vocab_size = 6, 9001
    logits = torch.linspace(-20, 20, vocab_size).repeat(rows, 1)
    logits[1::2] = logits[1::2].flip(-1)
    logits[2:] += torch.randn(rows - 2, vocab_size)
    temperatures: list[float] = [1.0, 1.0, 3.0, 0.5, 9.0, 2.0]
    tokens = sample(logits, params(rows, temperature=temperatures, position=77))
    u = philox_uniform(torch.arange(rows), torch.full((rows,), 77))
    for row in range(rows):
        probabilities = kept_probabilities(logits[row], temperatures[row], 0, 1.0, 0.0)
        assert tokens[row] == inverted(probabilities, u[row].item())


@pytest.mark.parametrize("candidates", [2048, 8])
def test_rows_of_unlike_filters(monkeypatch: pytest.MonkeyPatch, candidates: int) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    columns: dict[str, Column] = {
        "temperature": [1.0, 0.0, 0.7, 1.5, 1.0, 2.0],
        "top_k": [0, 0, 10, 0, 1500, 0],
        "top_p": [1.0, 0.5, 0.9, 0.99, 0.99, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.01, 0.0, 0.02],
        "seed": [5, -6, 2**62, 8, 9, 10],
        "position": [3, 2**40, 4, 1, 5, 9],
    }
    logits = 2 * torch.randn(6, 2200)
    assert torch.equal(sample(logits, params(6, **columns)), sample_torch(logits, params(6, **columns)))


def test_bits_are_those_of_the_definition() -> None:
    """With 1024 equal tokens the one drawn tells ten of the bits."""
    seeds: list[float] = [0, 1, -1, 2**63 - 1, -(2**63), 2**40 + 3]
    positions: list[float] = [0, 2**31 - 1, 2**33, 7, 2**31, 2**62]
    arguments = params(6, seed=seeds, position=positions)
    u = philox_uniform(arguments.seed, arguments.position)
    assert sample(torch.zeros(6, 1024), arguments).tolist() == (u * 1024).long().tolist()


def test_ties_are_all_kept() -> None:
    logits = torch.zeros(3, 2100)
    logits[:, 1500:] = 1.0  # 600 of the best: more than top-k asks for
    tokens = sample(logits, params(3, top_k=3))
    assert torch.equal(tokens, sample_torch(logits, params(3, top_k=3))) and int(tokens.min()) >= 1500


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.zeros(3, 5000)
    logits[0, [4012, 4020, 700]] = 2.0
    logits[1, 4999] = 1.0
    assert sample(logits, params(3, temperature=0.0)).tolist() == [700, 4999, 0]
    assert sample(logits.bfloat16(), params(3, temperature=0.0)).tolist() == [700, 4999, 0]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize("vocab_size", [10, 2100])
def test_broken_rows_fail_alone(options: dict[str, Column], vocab_size: int) -> None:
    logits = torch.randn(7, vocab_size)
    logits[1, 4] = torch.nan
    logits[2] = -torch.inf
    logits[3] = torch.nan
    logits[4] = -torch.inf
    logits[4, 7] = 0.0  # one token allowed
    logits[5, 3] = torch.inf
    logits[6, [1, 8]] = torch.inf
    tokens = sample(logits, params(7, **options))
    assert tokens[1:6].tolist() == [-1, -1, -1, 7, 3]
    assert torch.equal(tokens, sample_torch(logits, params(7, **options)))


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e4, 1e30])
def test_extreme_temperatures(temperature: float) -> None:
    logits = torch.tensor([[0.0, 5.0, -torch.inf, 4.999]]).expand(6, -1).contiguous()
    arguments = params(6, temperature=temperature)
    assert torch.equal(sample(logits, arguments), sample_torch(logits, arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 2500).to(dtype)
    before = logits.clone()
    assert torch.equal(sample(logits, params(2, top_p=0.9)), sample_torch(logits, params(2, top_p=0.9)))
    assert torch.equal(logits, before)


def test_no_rows() -> None:
    assert sample(torch.zeros(0, 9), params(1)).shape == (0,)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"sample has no kernel for torch\.float64"):
        sample(torch.zeros(1, 9).double(), params(1))
    with pytest.raises(ValueError, match="sample needs rows of 1 to 2097151 adjacent logits"):
        sample(torch.zeros(1, 18)[:, ::2], params(1))
