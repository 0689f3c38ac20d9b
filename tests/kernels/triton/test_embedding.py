import pytest
import torch

from sirocco.kernels.embedding import embedding

from .conftest import Launching


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("width", [1, 64, 1500])
def test_gather(launching: Launching, dtype: torch.dtype, id_dtype: torch.dtype, width: int) -> None:
    weight = torch.randn(11, width + 3).to(dtype)[:, :width]
    ids = torch.tensor([3, 10, 0, 3], dtype=id_dtype)
    with launching("embedding_kernel"):
        rows = embedding(ids, weight)
    assert torch.equal(rows, weight[ids.long()])


def test_nothing_outside_the_matrix_is_read() -> None:
    weight = torch.randn(6, 8)[1:5]
    rows = embedding(torch.tensor([-1, 4, 1, 2**40]), weight)
    assert torch.equal(rows[2], weight[1]) and not rows[[0, 1, 3]].any()


def test_no_tokens() -> None:
    assert embedding(torch.zeros(0, dtype=torch.int64), torch.randn(3, 8)).shape == (0, 8)


def test_refusals() -> None:
    ids, weight = torch.tensor([0, 1]), torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"embedding has no kernel for torch\.float64"):
        embedding(ids, weight.double())
    with pytest.raises(ValueError, match=r"token ids are int32 or int64, not torch\.float32"):
        embedding(ids.float(), weight)
    with pytest.raises(ValueError, match="not a stride of 2"):
        embedding(ids, weight[:, ::2])
    with pytest.raises(ValueError, match="token ids without gaps"):
        embedding(torch.arange(4)[::2], weight)
