import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources

from sirocco.kernels.embedding import embedding
from sirocco.kernels.triton import common, tune


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of one configuration file, in use on a device of its own."""
    text = (common.CONFIGS / "embedding.json").read_text()
    (tmp_path / "embedding.json").write_text(text)
    monkeypatch.setattr(common, "CONFIGS", tmp_path)
    monkeypatch.setattr(tune, "device_keys", lambda: ("some-gpu", "sm_1"))
    common.forget_configurations()
    yield tmp_path
    monkeypatch.undo()
    common.forget_configurations()


def test_the_fastest_that_fits_is_chosen() -> None:
    times = {64: 3.0, 128: 1.0, 256: 2.0}
    tried: list[int] = []

    def measure(call: Callable[[], object]) -> float:
        call()
        block = common.tuned("embedding", "embedding", 8)["BLOCK_C"]
        tried.append(block)
        if block == 512:
            raise OutOfResources(2, 1, "shared memory")
        return times[block]

    candidates = tune.choices(BLOCK_C=(64, 128, 256, 512), num_warps=(4,))
    call = lambda: embedding(torch.tensor([0]), torch.ones(1, 8))  # noqa: E731
    options, milliseconds = tune.best_options("embedding", "embedding", call, candidates, measure)
    assert (options, milliseconds) == ({"BLOCK_C": 128, "num_warps": 4}, 1.0) and tried == [64, 128, 256, 512]
    assert common.tuned("embedding", "embedding", 8)["BLOCK_C"] == 512  # as before
    with pytest.raises(RuntimeError, match="none of 1 configurations of embedding fits"):
        tune.best_options("embedding", "embedding", call, candidates[3:], measure)


def test_what_is_kept_is_used_on_that_device_alone(configs: Path) -> None:
    tune.keep("embedding", "embedding", None, {"BLOCK_C": 2048, "num_warps": 8})
    tune.keep("embedding", "embedding", 100, {"BLOCK_C": 128, "num_warps": 1})
    tune.keep("embedding", "embedding", 100, {"BLOCK_C": 64, "num_warps": 1})
    with common.configured_for("some-gpu", "sm_1"):
        assert common.tuned("embedding", "embedding", 100) == {"BLOCK_C": 64, "num_warps": 1}
        assert common.tuned("embedding", "embedding", 101) == {"BLOCK_C": 2048, "num_warps": 8}
    with common.configured_for("other-gpu", "sm_2"):
        assert common.tuned("embedding", "embedding", 101) == {"BLOCK_C": 512, "num_warps": 2}
    assert json.loads((configs / "embedding.json").read_text())["some-gpu"]["measured"]["torch"] == torch.__version__
