from collections.abc import Iterator

import pytest
import torch

from sirocco.kernels import backend


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    backend._kernels_installed.cache_clear()
    yield
    backend._kernels_installed.cache_clear()


def test_cpu_tensors_run_the_definition() -> None:
    assert not backend.use_triton(torch.zeros(1))


@pytest.mark.parametrize("installed", [True, False])
def test_forcing_needs_the_kernels(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(backend, "FORCE_TRITON", True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert backend.use_triton(torch.zeros(1)) is installed
