import torch

from sirocco.kernels.embedding import embedding


def test_rows_by_id() -> None:
    weight = torch.randn(5, 3)
    assert torch.equal(embedding(torch.tensor([4, 0, 4]), weight), torch.stack([weight[4], weight[0], weight[4]]))
