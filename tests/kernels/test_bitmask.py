import pytest
import torch
from torch import Tensor

from sirocco.kernels.bitmask import apply_bitmask, mask_words


def packed(allowed: Tensor) -> Tensor:
    """A mask with the bits of allowed [G, V] bool, and ones past the vocabulary."""
    words = torch.zeros(len(allowed), mask_words(allowed.shape[1]), dtype=torch.int64)
    for g in range(len(allowed)):
        for v in range(32 * words.shape[1]):
            if v >= allowed.shape[1] or allowed[g, v]:
                words[g, v // 32] |= 1 << v % 32
    return words.to(torch.uint32).view(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 200])
def test_only_allowed_tokens_keep_their_logits(dtype: torch.dtype, vocab_size: int) -> None:
    logits, allowed = torch.randn(3, 2 * vocab_size).to(dtype)[:, :vocab_size], torch.rand(3, vocab_size) < 0.5
    expected = logits.masked_fill(~allowed, -torch.inf)
    apply_bitmask(logits, packed(allowed))
    assert torch.equal(logits, expected)


def test_rows() -> None:
    logits, allowed = torch.randn(4, 70), torch.rand(2, 70) < 0.5
    expected = logits.clone()
    for g, row in enumerate((3, 1)):
        expected[row].masked_fill_(~allowed[g], -torch.inf)
    apply_bitmask(logits, packed(allowed), torch.tensor([3, 1]))
    assert torch.equal(logits, expected)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    logits = torch.zeros(2, 40)
    with pytest.raises(ValueError, match=r"2 rows of 40 logits need a mask \[2, 2\] of int32, not \[2, 1\]"):
        apply_bitmask(logits, torch.zeros(2, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"not \[2, 2\] of torch\.int64"):
        apply_bitmask(logits, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 rows of 40 logits"):
        apply_bitmask(logits, torch.zeros(2, 2, dtype=torch.int32), torch.tensor([1]))
