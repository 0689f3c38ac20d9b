import pytest
import torch

from sirocco.kernels.bitmask import apply_bitmask, apply_bitmask_torch, mask_words

from .conftest import Launching


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 33, 3001])
@pytest.mark.parametrize("rows", [None, [3, 0]], ids=str)
def test_as_defined(launching: Launching, dtype: torch.dtype, vocab_size: int, rows: list[int] | None) -> None:
    logits = torch.randn(4, vocab_size + 7).to(dtype)[:, :vocab_size]
    index = None if rows is None else torch.tensor(rows)
    mask = torch.randint(-(2**31), 2**31 - 1, (4 if rows is None else len(rows), mask_words(vocab_size))).int()
    expected = logits.clone()
    apply_bitmask_torch(expected, mask, index)
    with launching("bitmask_kernel"):
        apply_bitmask(logits, mask, index)
    assert torch.equal(logits, expected)


def test_nothing_beyond_a_row_is_written() -> None:
    whole = torch.zeros(2, 70)
    apply_bitmask(whole[:, :35], torch.zeros(2, 2, dtype=torch.int32))
    assert (whole[:, :35] == -torch.inf).all() and not whole[:, 35:].any()


def test_refusals() -> None:
    mask = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"apply_bitmask has no kernel for torch\.float64"):
        apply_bitmask(torch.zeros(2, 9).double(), mask)
    with pytest.raises(ValueError, match="adjacent columns"):
        apply_bitmask(torch.zeros(2, 18)[:, ::2], mask)
    with pytest.raises(ValueError, match=r"rows are int32 or int64 without gaps, not torch\.int16"):
        apply_bitmask(torch.zeros(2, 9), mask, torch.tensor([0, 1], dtype=torch.int16))
