import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources

from sirocco.kernels.embedding import embedding
from sirocco.kernels.triton import attention, common, tune


@pytest.fixture
def configs(tmp_path: Path) -> Iterator[Path]:
    """A copy of the configurations, in use."""
    with tune.kept_in(tmp_path):
        yield tmp_path


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
    with pytest.raises(tune.NothingFits, match="no configuration of embedding that was tried fits the device"):
        tune.best_options("embedding", "embedding", call, candidates[3:], measure)


def test_what_does_not_fit_another_call_is_not_chosen() -> None:
    def other() -> None:
        if common.tuned("embedding", "embedding", 8)["BLOCK_C"] == 64:
            raise OutOfResources(2, 1, "shared memory")

    def measure(call: Callable[[], object]) -> float:
        return float(common.tuned("embedding", "embedding", 8)["BLOCK_C"])

    candidates = tune.choices(BLOCK_C=(64, 128), num_warps=(4,))
    options, _ = tune.best_options("embedding", "embedding", lambda: None, candidates, measure, also=[other])
    assert options["BLOCK_C"] == 128


@pytest.mark.parametrize(
    ("failure", "unfit"),
    [
        (RuntimeError("PassManager::run failed"), True),
        (OutOfResources(2, 1, "registers"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_only_what_does_not_suit_the_device_is_passed_over(failure: Exception, unfit: bool) -> None:
    def measure(call: Callable[[], object]) -> float:
        raise failure

    if unfit:
        assert tune.time_of("embedding", "embedding", lambda: None, {"BLOCK_C": 64, "num_warps": 1}, measure) is None
    else:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            tune.time_of("embedding", "embedding", lambda: None, {"BLOCK_C": 64, "num_warps": 1}, measure)


def test_steps_are_cut_for_the_options_under_trial() -> None:
    def rows(call: Callable[[], object]) -> float:
        return attention.work_shape(4, 64, torch.float16, 2, None, torch.device("cpu")).rows[0]

    found = common.tuned("attention", "prefill_16", 64)
    assert [
        tune.time_of("attention", "prefill_16", lambda: None, found | {"BLOCK_M": count}, rows) for count in (32, 128)
    ] == [32, 128]
    assert rows(lambda: None) == found["BLOCK_M"]


def test_what_is_kept_is_used_on_that_device_alone(configs: Path) -> None:
    rows: list[tune.Bucket] = [(100, {"BLOCK_C": 64, "num_warps": 1}), (None, {"BLOCK_C": 2048, "num_warps": 8})]
    with common.configured_for("some-gpu", "sm_1"):
        tune.keep("embedding", "embedding", [(None, {"BLOCK_C": 32, "num_warps": 1})])
        tune.keep("embedding", "embedding", rows)
        assert tune.buckets("embedding", "embedding") == rows
        assert common.tuned("embedding", "embedding", 100) == {"BLOCK_C": 64, "num_warps": 1}
        assert common.tuned("embedding", "embedding", 101) == {"BLOCK_C": 2048, "num_warps": 8}
    with common.configured_for("other-gpu", "sm_2"):
        assert common.tuned("embedding", "embedding", 101) == {"BLOCK_C": 512, "num_warps": 2}
    measured = json.loads((configs / "embedding.json").read_text())["some-gpu"]["measured"]
    assert measured["architecture"] == "sm_1" and measured["torch"] == torch.__version__


@pytest.mark.parametrize("limits", [[], [100], [None, None], [100, 50, None], [None, 100]])
def test_a_kernel_is_kept_with_options_for_every_size(configs: Path, limits: list[int | None]) -> None:
    before = (configs / "embedding.json").read_text()
    with common.configured_for("some-gpu", "sm_1"), pytest.raises(ValueError, match="rise to one that has no limit"):
        tune.keep("embedding", "embedding", [(limit, {"BLOCK_C": 64, "num_warps": 1}) for limit in limits])
    assert (configs / "embedding.json").read_text() == before


def test_nothing_is_kept_without_a_device(configs: Path) -> None:
    with common.configured_for("default", "default"), pytest.raises(ValueError, match="there is none"):
        tune.keep("embedding", "embedding", [(None, {"BLOCK_C": 64, "num_warps": 1})])


def test_another_folder_leaves_the_shipped_files_alone(tmp_path: Path) -> None:
    shipped = common.CONFIGS
    before = (shipped / "embedding.json").read_bytes()
    with tune.kept_in(tmp_path / "new"), common.configured_for("some-gpu", "sm_1"):
        tune.keep("embedding", "embedding", [(None, {"BLOCK_C": 64, "num_warps": 1})])
        assert common.tuned("embedding", "embedding", 8)["BLOCK_C"] == 64
    with common.configured_for("some-gpu", "sm_1"):
        assert common.tuned("embedding", "embedding", 8)["BLOCK_C"] == 512
    assert (shipped / "embedding.json").read_bytes() == before and shipped == common.CONFIGS
    with tune.kept_in(tmp_path / "new"), common.configured_for("some-gpu", "sm_1"):  # what is there stays
        assert common.tuned("embedding", "embedding", 8)["BLOCK_C"] == 64


def test_files_keep_their_form() -> None:
    for path in common.CONFIGS.glob("*.json"):
        assert tune.text_of(json.loads(path.read_text())) == path.read_text(), path.name
