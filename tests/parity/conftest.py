import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic():
    """Fill `torch.empty` with NaN, so that an element nobody wrote shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
