import pytest
import torch
from torch.testing import assert_close

from sirocco.kernels.sampling import (
    apply_penalties,
    apply_penalties_torch,
    token_logprobs,
    token_logprobs_torch,
)

from .conftest import Launching

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_penalties(launching: Launching, dtype: torch.dtype) -> None:
    logits = torch.randn(3, 2100).to(dtype)
    logits[0, 0] = -torch.inf
    counts = (torch.randint(0, 3, (3, 2100)) * (torch.rand(3, 2100) < 0.3)).int()
    prompt = torch.rand(3, 2100) < 0.3
    factors = torch.tensor([1.3, 1.0, 0.8]), torch.tensor([0.5, 0.0, -1.0]), torch.tensor([0.2, 0.0, 0.7])
    expected, untouched = logits.double(), logits[1].clone()
    apply_penalties_torch(expected, counts, prompt, *(factor.double() for factor in factors))
    with launching("penalties_kernel"):
        apply_penalties(logits, counts, prompt, *factors)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]  # bfloat16 is cut off here
    assert_close(logits.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(logits[1], untouched)  # neutral factors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size, num_top", [(7, 0), (301, 5), (9001, 1)])
def test_logprobs(launching: Launching, dtype: torch.dtype, vocab_size: int, num_top: int) -> None:
    logits = (5 * torch.randn(4, 2 * vocab_size)).to(dtype)[:, :vocab_size]
    token_ids = torch.tensor([0, vocab_size - 1, 5, -1])
    with launching("partial_sums_kernel", "logprobs_kernel"):
        logprob, top_ids, top = token_logprobs(logits, token_ids, num_top)
    expected, _, expected_top = token_logprobs_torch(logits.double(), token_ids, num_top)
    assert logprob.dtype == top.dtype == torch.float32 and top_ids.shape == (4, num_top)
    assert_close(logprob[:3].double(), expected[:3], rtol=1e-5, atol=1e-5)
    assert_close(top.double(), expected_top, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits.gather(-1, top_ids), logits.topk(num_top, -1).values)  # equals may stand for each other


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of infinities
def test_logprobs_of_infinite_logits() -> None:
    logits = torch.full((3, 4100), -torch.inf)
    logits[0, [1, 4099]] = 0.0
    logits[1, [2, 4098]] = torch.inf
    ids = torch.tensor([3, 2, 0])
    assert_close(token_logprobs(logits, ids, 2), token_logprobs_torch(logits, ids, 2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="apply_penalties needs adjacent columns"):
        columns = torch.ones(3, 1)
        apply_penalties(torch.zeros(1, 8)[:, ::2], torch.zeros(1, 4).int(), torch.zeros(1, 4).bool(), *columns)
    with pytest.raises(ValueError, match="token_logprobs needs adjacent columns"):
        token_logprobs(torch.zeros(1, 8)[:, ::2], torch.tensor([0]), 1)
    with pytest.raises(ValueError, match=r"token_logprobs has no kernel for torch\.float64"):
        token_logprobs(torch.zeros(1, 8).double(), torch.tensor([0]), 1)
