"""Filters against a sorted float64 reference, the draw against its rule and its distribution."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sirocco.kernels import sampling
from sirocco.kernels.sampling import SamplingTensors, philox4x32, philox_uniform, sample

Column = float | list[float]  # one value for all rows, or one a row


def params(
    batch: int,
    temperature: Column = 1.0,
    top_k: Column = 0,
    top_p: Column = 1.0,
    min_p: Column = 0.0,
    seed: Column | None = None,
    position: Column = 0,
) -> SamplingTensors:
    def column(value: Column, dtype: torch.dtype) -> Tensor:
        return torch.tensor(value if isinstance(value, list) else [value] * batch, dtype=dtype)

    t, k = column(temperature, torch.float32), column(top_k, torch.int32)
    p, m = column(top_p, torch.float32), column(min_p, torch.float32)
    return SamplingTensors(
        temperature=t,
        top_k=k,
        top_p=p,
        min_p=m,
        seed=column([*range(batch)] if seed is None else seed, torch.int64),
        position=column(position, torch.int64),
        greedy=bool((t <= 0).all()),
        any_greedy=bool((t <= 0).any()),
        uses_top_k=bool((k > 0).any()),
        uses_top_p=bool((p < 1).any()),
        uses_min_p=bool((m > 0).any()),
        max_top_k=max(0, int(k.max())),
    )


def kept_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """What filtering leaves of one row, by sorting in float64; ties at a border stay."""
    scaled = [v / temperature for v in logits.double().tolist()]
    best = max(scaled)
    weights = [math.exp(v - best) for v in scaled]
    if top_k > 0:
        border = sorted(logits.tolist(), reverse=True)[min(top_k, len(scaled)) - 1]
        weights = [w if v >= border else 0.0 for w, v in zip(weights, logits.tolist(), strict=True)]
    if top_p < 1:
        total, mass, border = sum(weights), 0.0, math.inf
        for i in sorted(range(len(scaled)), key=lambda i: -scaled[i]):
            if mass >= top_p * total:
                break
            mass, border = mass + weights[i], scaled[i]
        weights = [w if v >= border else 0.0 for w, v in zip(weights, scaled, strict=True)]
    weights = [w if w >= min_p else 0.0 for w in weights]
    total = sum(weights)
    return [w / total for w in weights]


def inverted(probabilities: list[float], u: float) -> int:
    mass = 0.0
    for token, probability in enumerate(probabilities):
        mass += probability
        if mass > u:
            return token
    raise AssertionError("u is below one")


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 5000},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.1},
    {"temperature": 0.3, "top_p": 0.95},
    {"temperature": 4.0, "top_p": 0.95},
    {"temperature": 4.0, "top_k": 2000, "top_p": 0.5},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("vocab_size", [3, 300, 3001])
def test_filters_and_draw_follow_the_sorted_reference(options: dict[str, float], vocab_size: int) -> None:
    batch = 40
    logits = 2 * torch.randn(batch, 2 * vocab_size)[:, ::2]
    tokens = sample(logits, params(batch, **options))
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    u = philox_uniform(torch.arange(batch), torch.zeros(batch, dtype=torch.int64))
    for row in range(batch):
        probabilities = kept_probabilities(
            logits[row], full["temperature"], int(full["top_k"]), full["top_p"], full["min_p"]
        )
        assert tokens[row] == inverted(probabilities, u[row].item())


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_every_path_draws_the_same(monkeypatch: pytest.MonkeyPatch, options: dict[str, float]) -> None:
    logits = 3 * torch.randn(30, 2500)
    whole = sample(logits, params(30, **options))
    for name, size in (("_NUCLEUS", 7), ("_CANDIDATES", 9), ("_MORE_CANDIDATES", 60), ("_SMALL", 100)):
        monkeypatch.setattr(sampling, name, size)
        assert torch.equal(sample(logits, params(30, **options)), whole)


def test_rows_of_unlike_filters_do_not_touch_each_other() -> None:
    logits = 2 * torch.randn(8, 2000)
    columns: dict[str, list[float]] = {
        "temperature": [1.0, 0.0, 0.7, 1.5, 1.0, 2.0, 0.0, 1.0],
        "top_k": [0, 0, 10, 0, 1500, 0, 3, 1],
        "top_p": [1.0, 0.5, 0.9, 0.99, 0.99, 1.0, 1.0, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.01, 0.0, 0.02, 0.0, 0.0],
        "seed": [5, 6, 7, 8, 9, 10, 11, 12],
        "position": [3, 1, 4, 1, 5, 9, 2, 6],
    }
    together = sample(logits, params(8, **columns))
    for row in range(8):
        alone = sample(logits[row : row + 1], params(1, **{name: values[row] for name, values in columns.items()}))
        assert alone.item() == together[row]
    order = torch.randperm(8)
    shuffled = {name: [values[i] for i in order] for name, values in columns.items()}
    assert torch.equal(sample(logits[order], params(8, **shuffled)), together[order])


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.5}], ids=str)
def test_distribution(options: dict[str, float]) -> None:
    draws, row = 6000, torch.tensor([2.0, -1.0, 0.3, 1.1, -3.0, 0.0, 1.9, -0.4, 0.8, -torch.inf])
    tokens = sample(row.expand(draws, -1), params(draws, seed=11, position=[*range(draws)], **options))
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    probabilities = kept_probabilities(row, full["temperature"], int(full["top_k"]), full["top_p"], full["min_p"])
    counts = tokens.bincount(minlength=10).tolist()
    assert all(count == 0 for count, p in zip(counts, probabilities, strict=True) if p == 0)
    chi_square = sum((n - draws * p) ** 2 / (draws * p) for n, p in zip(counts, probabilities, strict=True) if p > 0)
    assert chi_square < 27.9  # the 0.1 % point of nine degrees of freedom


def test_large_vocabulary_distribution() -> None:
    """Tokens beyond the first chunk are reached in proportion."""
    vocab_size, draws = 40_000, 3000
    logits = torch.zeros(1, vocab_size).expand(100, -1)
    steps: list[list[float]] = [[*range(i, i + 100)] for i in range(0, draws, 100)]
    tokens = torch.cat([sample(logits, params(100, seed=3, position=positions)) for positions in steps])
    counts = (tokens * 10 // vocab_size).bincount(minlength=10)
    assert sum((n - draws / 10) ** 2 / (draws / 10) for n in counts.tolist()) < 27.9
    assert int(tokens.max()) > vocab_size * 0.99


def test_chunks_of_unlike_weight() -> None:
    """Draws from chunks whose bests lie up to forty temperatures below the row's."""
    rows, vocab_size = 60, 9001
    logits = torch.linspace(-20, 20, vocab_size).repeat(rows, 1)
    logits[1::2] = logits[1::2].flip(-1)
    logits[20:] += torch.randn(rows - 20, vocab_size)
    temperatures: list[float] = [1.0, 1.0, 3.0, 0.5, 9.0, 2.0] * 10
    tokens = sample(logits, params(rows, temperature=temperatures))
    u = philox_uniform(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    for row in range(rows):
        probabilities = kept_probabilities(logits[row], temperatures[row], 0, 1.0, 0.0)
        assert tokens[row] == inverted(probabilities, u[row].item())


@pytest.mark.parametrize("vocab_size", [1, 16, 8192, 8193, 32000, 151936, 262144, 262145, (1 << 21) - 1])
def test_chunks_are_few(vocab_size: int) -> None:
    size = sampling.chunk_size(vocab_size)
    assert size & (size - 1) == 0
    assert -(-vocab_size // size) <= 512 < 1024 < -(-vocab_size // (size // 4)) or size == 16


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.zeros(3, 50_000)
    logits[0, [40_123, 40_200, 7_000]] = 2.0
    logits[1, [49_999]] = 1.0
    assert sample(logits, params(3, temperature=0.0)).tolist() == [7_000, 49_999, 0]
    assert sample(logits.bfloat16(), params(3, temperature=0.0)).tolist() == [7_000, 49_999, 0]
    assert sample(logits[:, :10_000], params(3, temperature=[0.0, 1.0, 0.0])).tolist()[::2] == [7_000, 0]


def test_ties_at_the_border_are_all_kept() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]]).expand(400, -1)
    for options in ({"top_k": 3}, {"top_p": 0.8}):  # masses .074 .547 .074 .201 .074 .027: the third token crosses 0.8
        tokens = sample(logits, params(400, **options))
        assert set(tokens.tolist()) == {0, 1, 2, 3, 4}


def test_ties_beyond_the_candidates_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_CANDIDATES", 4)
    logits = torch.zeros(600, 30)
    for options in ({"top_k": 3}, {"top_p": 0.2}):
        assert len(set(sample(logits, params(600, **options)).tolist())) == 30


def test_the_token_that_crosses_is_kept() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(500, -1)
    assert set(sample(logits, params(500, top_p=0.4)).tolist()) == {0}
    assert set(sample(logits, params(500, top_p=0.6)).tolist()) == {0, 1}
    assert set(sample(logits, params(500, top_p=0.9)).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize("vocab_size", [10, 20_000])
def test_broken_rows_fail_alone(options: dict[str, float], vocab_size: int) -> None:
    logits = torch.randn(6, vocab_size)
    logits[1, 4] = torch.nan
    logits[2] = -torch.inf
    logits[3] = torch.nan
    logits[4] = -torch.inf
    logits[4, 7] = 0.0  # one token allowed
    logits[5, 3] = torch.inf
    tokens = sample(logits, params(6, **options)).tolist()
    assert tokens[1:] == [-1, -1, -1, 7, 3]
    assert tokens[0] == sample(logits[:1], params(1, **options)).item() >= 0


def test_two_infinities_share_the_mass() -> None:
    logits = torch.randn(400, 12)
    logits[:, [2, 9]] = torch.inf
    assert set(sample(logits, params(400)).tolist()) == {2, 9}
    assert sample(logits, params(400, temperature=0.0)).tolist() == [2] * 400


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e4, 1e30])
def test_extreme_temperatures(temperature: float) -> None:
    logits = torch.tensor([[0.0, 5.0, -torch.inf, 4.999]]).expand(300, -1)
    tokens = set(sample(logits, params(300, temperature=temperature)).tolist())
    assert tokens == ({1} if temperature < 1 else {0, 1, 3})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    logits = torch.randn(20, 500).to(dtype)
    assert torch.equal(sample(logits, params(20, top_p=0.9)), sample(logits.float(), params(20, top_p=0.9)))


def test_logits_are_not_changed() -> None:
    logits = torch.randn(4, 700)
    before = logits.clone()
    sample(logits, params(4, temperature=0.5, top_k=5, top_p=0.5, min_p=0.1))
    assert torch.equal(logits, before)


KNOWN_ANSWERS = [  # of the authors' Random123 distribution
    ((0, 0, 0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_philox_known_answers() -> None:
    for words, expected in KNOWN_ANSWERS:
        assert philox4x32(*words) == expected
    columns = [torch.tensor(column) for column in zip(*(words for words, _ in KNOWN_ANSWERS), strict=True)]
    assert torch.stack(philox4x32(*columns)).T.tolist() == [list(expected) for _, expected in KNOWN_ANSWERS]


def test_uniforms() -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 2**40 + 3] * 10)
    positions = torch.arange(60) * (2**31 - 1)
    many = philox_uniform(seeds, positions)  # in tensors
    few = torch.cat([philox_uniform(seeds[i : i + 6], positions[i : i + 6]) for i in range(0, 60, 6)])  # in ints
    assert many.dtype == torch.float32 and torch.equal(many, few)
    assert len(set(many.tolist())) == 60
    u = philox_uniform(torch.full((20_000,), 7), torch.arange(20_000))
    assert 0 <= u.min() < 1e-3 and 1 - 1e-3 < u.max() < 1
    assert_close(u.mean().item(), 0.5, rtol=0, atol=0.01)
    assert not (u[1:] == u[:-1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_penalties(dtype: torch.dtype) -> None:
    batch, vocab_size = 3, 40
    logits = torch.randn(batch, vocab_size).to(dtype)
    logits[0, 0] = -torch.inf
    counts = torch.randint(0, 3, (batch, vocab_size), dtype=torch.int32) * (torch.rand(batch, vocab_size) < 0.3)
    prompt = torch.rand(batch, vocab_size) < 0.3
    repetition, presence, frequency = (
        torch.tensor([1.3, 1.0, 0.8]),
        torch.tensor([0.5, 0.0, -1.0]),
        torch.tensor([0.2, 0.0, 0.7]),
    )
    expected = logits.double()
    for b in range(batch):
        for v in range(vocab_size):
            value, count = expected[b, v].item(), int(counts[b, v])
            if count or prompt[b, v]:
                factor = repetition[b].item()
                value = value / factor if value > 0 else value * factor
            expected[b, v] = value - count * frequency[b].item() - (count > 0) * presence[b].item()
    untouched = logits[1].clone()
    sampling.apply_penalties(logits, counts.int(), prompt, repetition, presence, frequency)
    assert_close(logits, expected.to(dtype))
    assert torch.equal(logits[1], untouched)  # neutral factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logit_bias(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 10, dtype=dtype)
    rows, ids = torch.tensor([0, 2, 0, 0]), torch.tensor([4, 1, 4, 9])
    sampling.apply_logit_bias(logits, rows, ids, torch.tensor([1.5, -100.0, 2.0, -torch.inf]))
    expected = torch.zeros(3, 10, dtype=dtype)
    expected[0, 4], expected[2, 1], expected[0, 9] = 3.5, -100.0, -torch.inf
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs(dtype: torch.dtype, num_top: int) -> None:
    logits = (5 * torch.randn(4, 301)).to(dtype)
    token_ids = torch.tensor([0, 300, 17, -1])  # the last row failed: any number will do
    logprob, top_ids, top = sampling.token_logprobs(logits, token_ids, num_top)
    assert logprob.dtype == top.dtype == torch.float32
    assert top_ids.shape == top.shape == (4, num_top)
    exact = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    assert_close(logprob[:3], exact[torch.arange(3), token_ids[:3]].float())
    assert_close(top, exact.sort(-1, descending=True).values[:, :num_top].float())
    assert_close(exact.gather(-1, top_ids).float(), top)


def test_logprobs_of_masked_tokens() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [torch.inf, 1.0, torch.inf]])
    logprob, _, top = sampling.token_logprobs(logits, torch.tensor([1, 0]), 2)
    assert logprob[0] == -torch.inf and logprob[1].item() == pytest.approx(-math.log(2))
    assert_close(top, torch.full((2, 2), -math.log(2)))
