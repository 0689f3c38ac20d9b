"""Kernels compiled for GPUs that are not here; these tests need a process whose kernels are not interpreted."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sirocco.kernels.triton import common, compile, tune
from sirocco.kernels.triton.cases import (
    Dims,
    LatentDims,
    MambaDims,
    bidirectional_calls,
    latent_calls,
    mamba_calls,
    model_calls,
    norm_calls,
    sampling_calls,
    shipped_calls,
)
from sirocco.kernels.triton.common import compile_launch, compiled_variants, launch, recording, tuned
from sirocco.kernels.triton.compile import TARGETS, Usage, compile_all, compiling_for, measured_devices
from sirocco.kernels.triton.warmup import warm_up

pytestmark = [
    pytest.mark.skipif(common.INTERPRETED, reason="an interpreted kernel cannot be compiled"),
    pytest.mark.timeout(600),
]


def kernels() -> set[str]:
    """Names of what is launched anywhere in the package."""
    sources = [path.read_text() for path in Path(common.__file__).parent.glob("*.py")]
    return {name for source in sources for name in re.findall(r"def _(\w+_kernel)\(", source)}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills(target: str) -> None:
    command = [sys.executable, "-m", "sirocco.kernels.triton.compile", target]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    rows = [line for line in compiled.stdout.splitlines() if f"| {target} |" in line]
    in_bfloat16 = {row.split("|")[1].strip() for row in rows if "bfloat16" in row}
    others = {"bound_kernel", "log_decay_kernel"}  # which see float32 alone
    assert kernels() - in_bfloat16 <= others
    assert all(any(f"| {kernel} |" in row for row in rows) for kernel in others)


@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration_is_reached(target: str) -> None:
    for device in (target, *measured_devices(TARGETS[target])):
        check_reached(device, target)


def check_reached(device: str, target: str) -> None:
    with common.configured_for(device, target), recording() as launches:
        for call in shipped_calls():
            call()
        for path in common.CONFIGS.glob("*.json"):
            table = common.configurations(path.stem)
            for kernel in table["default"]["kernels"]:
                for _, options in common._buckets(path.stem, kernel, (device, target)):
                    if kernel.endswith("_32"):
                        continue  # of float32, compiled by --all
                    compile_time = {name: value for name, value in options.items() if name != "DESCRIPTORS"}
                    assert any(
                        launch.kernel.__module__.endswith(f".{path.stem}")
                        and compile_time.items() <= launch.options.items()
                        for launch in launches
                    ), f"{path.stem}: {kernel} {options}"


def test_lengths_do_not_make_variants() -> None:
    dims = Dims(width=1024, intermediate=1024, head_dim=64, rotary_dim=64, vocab_size=3000)

    def compile_with(count: int) -> int:
        with recording() as launches:
            for call in (*model_calls(dims, count), *sampling_calls(dims, count, first=count % 16)):
                call()
        for one in launches:
            compile_launch(one)
        return compiled_variants()

    with compiling_for(TARGETS["sm_90"]):
        variants = compile_with(16)
        assert variants > 0
        assert [compile_with(count) for count in (1, 2, 33, 4096)] == [variants] * 4


def test_lengths_of_other_attention_do_not_make_variants() -> None:
    latent = LatentDims(num_heads=20, rank=32, nope_dim=16, rope_dim=16, value_dim=16)
    dims = Dims(num_heads=2, num_kv_heads=1, head_dim=16, window=20)

    def compile_with(query_lens: list[int]) -> int:
        with recording() as launches:
            for call in (*latent_calls(latent, query_lens), *bidirectional_calls(dims, 9, sum(query_lens))):
                call()
        for one in launches:
            compile_launch(one)
        return compiled_variants()

    with compiling_for(TARGETS["sm_90"]):
        variants = compile_with([1, 299])
        assert variants > 0
        assert [compile_with(lengths) for lengths in ([1], [1, 1], [33], [3] * 16)] == [variants] * 4


def test_lengths_of_recurrent_steps_do_not_make_variants() -> None:
    dims = MambaDims(num_heads=4, head_dim=16, state_size=16)

    def compile_with(query_lens: list[int]) -> int:
        with recording() as launches:
            for call in mamba_calls(dims, query_lens):
                call()
        for one in launches:
            compile_launch(one)
        return compiled_variants()

    with compiling_for(TARGETS["sm_90"]):
        compile_with([1])
        variants = compile_with([1, 3])
        assert variants > 0
        assert [compile_with(lengths) for lengths in ([2, 3], [64, 1, 7], [1, 1], [300])] == [variants] * 4


def test_warming_up_leaves_nothing_to_compile() -> None:
    dims = Dims(width=1024, intermediate=1024, head_dim=64, rotary_dim=64, vocab_size=3000, qk_norm=False)
    with compiling_for(TARGETS["sm_90"]):
        assert warm_up(dims, load=False) > 0
        assert warm_up(dims, load=False) == 0


def test_a_spill_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(common.override, ("norm", "norm"), {"ROWS": 1, "num_warps": 1})
    (usage,) = compile_all(TARGETS["sm_80"], [next(norm_calls(Dims(width=8192)))])
    assert usage.spilled > 0 and usage.fault == f"{usage.spilled} bytes spilled"


def test_a_candidate_that_spills_is_noticed() -> None:
    call = next(norm_calls(Dims(width=8192)))
    with compiling_for(TARGETS["sm_80"]):
        assert tune.spills("norm", "norm", call, {"ROWS": 1, "num_warps": 1})
        assert not tune.spills("norm", "norm", call, {"ROWS": 1, "num_warps": 16})


def test_what_was_measured_on_a_device_is_compiled_for_its_architecture(tmp_path: Path) -> None:
    with tune.kept_in(tmp_path):
        with common.configured_for("some-gpu", "sm_80"):
            tune.keep("norm", "norm", [(64, {"ROWS": 4, "num_warps": 2}), (None, {"ROWS": 2, "num_warps": 8})])
        assert measured_devices(TARGETS["sm_80"]) == ["some-gpu"] and not measured_devices(TARGETS["sm_90"])
        call = next(norm_calls(Dims(width=64)))
        assert {usage.num_warps for usage in compile_all(TARGETS["sm_80"], [call])} == {4, 2}
        assert {usage.num_warps for usage in compile_all(TARGETS["sm_90"], [call])} == {4}


def test_sizes_of_every_attention_bucket_are_reached(tmp_path: Path) -> None:
    with tune.kept_in(tmp_path):
        for kernel in ("decode_16", "prefill_16"):
            with common.configured_for("sm_90", "sm_90"):
                rows = tune.buckets("attention", kernel)
            with common.configured_for("some-gpu", "sm_90"):
                tune.keep(
                    "attention", kernel, [(limit, row | {"num_stages": 5 + i}) for i, (limit, row) in enumerate(rows)]
                )
        check_reached("some-gpu", "sm_90")


def test_too_much_shared_memory_is_a_fault() -> None:
    usage = Usage("k", TARGETS["sm_80"], "", num_warps=4, registers=32, spilled=0, shared=163 << 10)
    assert usage.fault is None
    assert replace(usage, shared=usage.shared + 1).fault == "166913 bytes of shared memory, 166912 at most"


def test_occupancy() -> None:
    usage = Usage("k", TARGETS["sm_90"], "", num_warps=8, registers=64, spilled=0, shared=0)
    assert usage.occupancy == 0.5  # 65536 registers hold 4 programs of 256 threads
    assert replace(usage, shared=100 << 10).occupancy == 0.25
    assert replace(usage, registers=20).occupancy == 1.0


def test_the_driver_is_put_back() -> None:
    from triton.runtime import driver

    before = driver._active
    with pytest.raises(ZeroDivisionError), compiling_for(TARGETS["gfx942"]):
        assert common.device_key() == ("gfx942", "gfx942")
        raise ZeroDivisionError
    assert driver._active is before and common.device_key()[0] != "gfx942"


def test_unknown_targets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compile.main(["sm_12"])
    assert "unknown target 'sm_12'; known are sm_80, sm_90, sm_100, gfx942" in capsys.readouterr().err


def test_a_size_without_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_buckets", lambda *key: [(8.0, {})])
    with pytest.raises(ValueError, match="no configuration of norm holds size 9"):
        tuned("norm", "norm", 9)


def test_a_recorded_launch_is_not_made() -> None:
    with recording() as launches:
        launch(print, (1,), 2, A=3)
    assert [(one.name, one.grid, one.args, one.options) for one in launches] == [("print", (1,), (2,), {"A": 3})]
    assert "print" not in common.launches()
