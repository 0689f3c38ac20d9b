"""Tuning, tried without a GPU: what is called, what is chosen and what is written."""

import json
import subprocess
import sys
import types

import pytest
import torch
from triton.runtime.errors import OutOfResources

from sirocco.api.cli.main import main
from sirocco.bench import gpu, tune, tune_flash
from sirocco.bench.gpu import GpuBench, plan
from sirocco.bench.kernel_cases import Setting
from sirocco.bench.tune import TuneBench, measure
from sirocco.bench.tune_cases import CASES
from sirocco.bench.tune_flash import Point, crossover
from sirocco.kernels import flash
from sirocco.kernels.triton import common
from sirocco.kernels.triton import tune as tuning
from sirocco.runtime.errors import RequestError


@pytest.fixture
def unused_shapes():
    """Steps that were cut under trial do not outlive a test."""
    yield
    tuning._forget()


def block(family="embedding", option="BLOCK_C"):
    return common.tuned(family, family, 512)[option]


def test_every_configured_kernel_is_tuned():
    shipped = {
        (path.stem, kernel)
        for path in common.CONFIGS.glob("*.json")
        for kernel in common.configurations(path.stem)["default"]["kernels"]
    }
    assert {(case.family, case.kernel) for case in CASES} == shipped


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}.{case.kernel}")
@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_what_stands_for_a_bucket_launches_what_a_candidate_says(case, architecture, unused_shapes):
    with common.configured_for(architecture, architecture):
        for limit, before in tuning.buckets(case.family, case.kernel):
            sizes = case.sizes(limit)
            assert limit is None or max(sizes) == limit
            candidates = case.candidates(max(sizes))
            assert 2 <= len(candidates) <= 40 and all(candidate.keys() <= before.keys() for candidate in candidates)
            options = before | next(one for one in candidates if before | one != before)
            wanted = {name: value for name, value in options.items() if name != "DESCRIPTORS"}
            for dtype in (case.dtype, *case.also):
                call = case.make(max(sizes), Setting(torch.device("cpu"), dtype, small=True))

                def launched(call, wanted=wanted):
                    with common.recording() as launches:
                        call()
                    return float(any(wanted.items() <= launch.options.items() for launch in launches))

                assert tuning.time_of(case.family, case.kernel, call, options, launched) == 1.0, options
                assert tuning.time_of(case.family, case.kernel, call, before, launched) == (options == before)


def test_the_faster_is_written_and_used(tmp_path):
    told = []
    bench = TuneBench(["embedding"], tmp_path, small=True)
    rows = measure(bench, told.append, lambda call: 2.0 if block() == 512 else 0.5 if block() == 256 else 3.0)
    best = {"BLOCK_C": 256, "num_warps": 1}
    first, last = rows
    assert first["kernel"] == "embedding.embedding" and first["bucket"] == "to 512" and first["outcome"] == "faster"
    assert first["options"] == best and first["us"] == 500.0 and first["us_before"] == 2000.0
    assert last["bucket"] == "the rest" and last["options"] == best and last["us_before"] == 3000.0
    assert [row["outcome"] for row in told] == ["faster", "faster"] and first["device"] and first["versions"]
    with tuning.kept_in(tmp_path), common.configured_for("interpreter", "interpreter"):
        assert common.tuned("embedding", "embedding", 512) == common.tuned("embedding", "embedding", 513) == best
    with common.configured_for("interpreter", "interpreter"):
        assert common.tuned("embedding", "embedding", 512)["BLOCK_C"] == 512


def test_what_is_faster_by_noise_is_not_chosen(tmp_path):
    rows = measure(TuneBench(["embedding"], tmp_path, small=True), measured=lambda call: 0.99 if block() == 256 else 1)
    assert [row["outcome"] for row in rows] == ["as before", "as before"]
    assert [row["options"]["BLOCK_C"] for row in rows] == [512, 1024] and rows[0]["us"] == rows[0]["us_before"] == 1000
    assert "interpreter" in json.loads((tmp_path / "embedding.json").read_text())  # it was measured


def test_what_is_not_reached_stays_as_it_is(tmp_path):
    seconds = [0.0]

    def measured(call):
        seconds[0] += 4.0
        return 1.0 / seconds[0]

    bench = TuneBench(["norm", "rope"], tmp_path, seconds=43, small=True)
    rows = measure(bench, measured=measured, clock=lambda: seconds[0])
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == ["faster"] * 5 + ["as before"] + ["no time left"] * 3  # it was up before the sixth's candidate
    kept = json.loads((tmp_path / "norm.json").read_text())["interpreter"]["kernels"]["norm"]
    assert [{name: row[name] for name in ("ROWS", "num_warps")} for row in kept] == [row["options"] for row in rows[:6]]
    assert [row.get("up_to") for row in kept] == [128, 512, 1024, 4096, 8192, None]
    assert "interpreter" not in json.loads((tmp_path / "rope.json").read_text())


@pytest.mark.parametrize(
    "failure, outcome",
    [(OutOfResources(2, 1, "shared memory"), "nothing fits"), (torch.OutOfMemoryError("no"), "out of memory")],
)
def test_what_cannot_be_measured_is_said_and_not_written(tmp_path, failure, outcome):
    def measured(call):
        raise failure

    rows = measure(TuneBench(["embedding"], tmp_path, small=True), measured=measured)
    assert [(row["outcome"], row["options"]["BLOCK_C"]) for row in rows] == [(outcome, 512), (outcome, 1024)]
    assert "interpreter" not in json.loads((tmp_path / "embedding.json").read_text())


def test_what_does_not_fit_any_more_is_replaced(tmp_path):
    def measured(call):
        if block() == 512:
            raise OutOfResources(2, 1, "shared memory")
        return 1.0

    first, _ = measure(TuneBench(["embedding"], tmp_path, small=True), measured=measured)
    assert first["outcome"] == "faster" and first["us_before"] is None and first["options"]["BLOCK_C"] == 256


@pytest.fixture
def flash_attn(monkeypatch):
    """A flash-attn that is installed; nothing here runs it."""
    module = types.ModuleType("flash_attn")
    module.__spec__ = types.SimpleNamespace(name="flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    yield module
    flash.from_queries.cache_clear()


def test_flash_attn_is_chosen_from_where_it_wins(tmp_path, flash_attn, unused_shapes):
    times = iter([1.0, 2.0, 3.0, 2.5])  # ours and its, with 4 and with 8 queries
    (row,) = measure(TuneBench(["flash-attn"], tmp_path, small=True), measured=lambda call: next(times))
    assert row["bucket"] == "head dim 64" and row["options"] == {"from queries": 8} and row["outcome"] == "faster"
    assert row["us"] == 2500.0 and row["us_before"] == 3000.0
    assert json.loads((tmp_path / "flash.json").read_text()) == {"interpreter": {"64": 8}}


def test_flash_attn_that_never_wins_or_cannot_is_not_used(tmp_path, flash_attn, unused_shapes):
    def flash_attn_varlen_func(*arguments, **options):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")

    bench = TuneBench(["flash-attn"], tmp_path, small=True)
    (row,) = measure(bench, measured=lambda call: 1.0)
    assert row["outcome"] == "never faster" and row["options"] == {}
    assert json.loads((tmp_path / "flash.json").read_text()) == {"interpreter": {}}

    flash_attn.flash_attn_varlen_func = flash_attn_varlen_func
    (row,) = measure(bench, measured=lambda call: 1.0 if "ours" in call.__qualname__ else call() or 1.0)
    assert row["outcome"].startswith("cannot: ")


def test_without_flash_attn_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_flash.importlib.util, "find_spec", lambda name: None)
    (row,) = measure(TuneBench(["flash-attn"], tmp_path, small=True))
    assert row["outcome"] == "not installed" and not (tmp_path / "flash.json").exists()


@pytest.mark.parametrize(
    "points, least",
    [
        ([(64, 1, 2), (128, 2, 1), (256, 3, 2)], 128),
        ([(64, 2, 1), (128, 1, 2), (256, 3, 2)], 256),  # what wins once does not win from there on
        ([(64, 2, 1), (128, 2, 1)], 64),
        ([(64, 2, 1), (64, 1, 2), (128, 2, 1), (128, 2, 1)], 128),  # in one of two contexts
        ([(64, 2, 1), (128, 1, 1)], None),
        ([], None),
    ],
)
def test_the_crossover_is_where_it_begins_to_win_always(points, least):
    assert crossover([Point(*point) for point in points]) == least


@pytest.mark.parametrize(
    "line, said",
    [
        ("", "tuning needs a CUDA or ROCm device; --small --out DIR tries it without one"),
        ("--operators sorting", "unknown operator 'sorting': choose attention, "),
        ("--small", "--small needs --out"),
        ("--small --out /dev/null/x", "/dev/null/x cannot be written: Not a directory"),
        ("--seconds 0", "0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(line, said, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which --small would set for this process
    with pytest.raises(SystemExit) as ended:
        main(["bench", "tune", *line.split()])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and said in err


def test_a_folder_that_is_read_only_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tune.os, "access", lambda *arguments: False)
    with pytest.raises(RequestError, match="cannot be written: --out DIR takes another folder"):
        measure(TuneBench(["embedding"], tmp_path, small=True))


def test_a_small_trial_goes_all_the_way(tmp_path):
    """In a process of its own, whose kernels are interpreted."""
    arguments = ["bench", "tune", "--small", "--out", str(tmp_path), "--operators", "bitmask", "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sirocco", *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["kernel"] == "bitmask.bitmask" and row["us"] > 0 and row["us_before"] > 0
    assert "bitmask.bitmask the rest" in done.stderr
    (kept,) = json.loads((tmp_path / "bitmask.json").read_text())["interpreter"]["kernels"]["bitmask"]
    assert kept == row["options"]


def test_a_gpu_is_tuned_first_where_asked(tmp_path):
    first, *others = plan(GpuBench(tmp_path, tune=True))
    assert first.name == "tune" and [*others] == plan(GpuBench(tmp_path))
    assert first.arguments[-2:] == ["--seconds", "150"] and first.share * 600 > 150
    assert "--out" in plan(GpuBench(tmp_path, tune=True, small=True))[0].arguments


def test_the_command_line_reaches_the_plan(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(gpu, "measure", lambda bench: made.append(bench) or [{"part": "x", "outcome": "passed"}])
    for flags in ([], ["--tune"]):
        with pytest.raises(SystemExit) as ended:
            main(["bench", "gpu", "--out", str(tmp_path), *flags])
        assert ended.value.code == 0
    assert [bench.tune for bench in made] == [False, True]
