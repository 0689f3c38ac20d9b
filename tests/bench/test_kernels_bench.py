"""Measuring kernels and a GPU, tried without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sirocco.api.cli.main import main
from sirocco.bench import gpu, kernel_cases, kernels, report
from sirocco.bench.gpu import GpuBench, Part, plan
from sirocco.bench.kernels import KernelBench, measure, passed
from sirocco.runtime.errors import ModelLoadError, RequestError

ROOT = Path(__file__).resolve().parents[2]


def test_every_operator_is_right_and_has_a_speed():
    rows = measure(KernelBench(device="cpu", dtypes=["float32"], small=True, seconds=0.0))
    assert {row["operator"] for row in rows} == set(kernel_cases.OPERATORS)
    assert passed(rows)
    for row in rows:
        assert row["us"] > 0 and row["gbps"] >= 0 and row["copy_gbps"] > 0 and row["matmul_tflops"] > 0
        assert row["device"] and row["versions"] and row["path"] == "torch"


@pytest.mark.parametrize("fault", [1.1, float("nan")])
def test_wrong_numbers_have_no_speed(monkeypatch, capsysbinary, fault):
    monkeypatch.setattr(kernel_cases.activation, "swiglu", lambda x: x[..., : x.shape[-1] // 2] * fault)
    arguments = ["bench", "kernels", "swiglu", "--device", "cpu", "--dtype", "float32", "--small", "--json", "-"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    (row,) = json.loads(capsysbinary.readouterr().out)
    assert not row["correct"] and "us" not in row


def test_a_size_that_no_kernel_does_is_named_and_the_rest_is_kept(monkeypatch, tmp_path):
    case = next(case for case in kernel_cases.CASES if case.operator == "swiglu")

    def refuse():
        raise ValueError("no kernel for a rank of 512 in torch.float32")

    def make(setting):
        return kernel_cases.Trial(refuse, refuse, 0, 0, {})

    monkeypatch.setattr(kernels, "check", lambda case, setting: 0.0)
    monkeypatch.setattr(kernels, "CASES", (kernel_cases.Case("swiglu", "too large", make), case))
    path, kept = tmp_path / "rows.json", []

    def keep(rows):
        report.keep(rows, str(path))
        kept.append(len(json.loads(path.read_text())))

    rows = measure(KernelBench(["swiglu"], "cpu", ["float32"], small=True, seconds=0.0), keep)
    assert rows[0]["us"] == "cannot: no kernel for a rank of 512 in torch.float32" and rows[1]["us"] > 0
    assert kept == [1, 2]


def test_a_peer_that_cannot_is_named_and_does_no_harm(monkeypatch):
    case = next(case for case in kernel_cases.CASES if case.operator == "swiglu")

    def make(setting):
        trial = case.make(setting)

        def refuse():
            raise RuntimeError("No available kernel. Aborting execution.\nmore")

        return kernel_cases.Trial(trial.run, trial.exact, trial.num_bytes, 0, {"other": refuse})

    monkeypatch.setattr(kernels, "CASES", (kernel_cases.Case("swiglu", "x", make),))
    (row,) = measure(KernelBench(["swiglu"], "cpu", ["float32"], small=True, seconds=0.0))
    assert row["us"] > 0 and row["peers_us"] == {"other": "cannot: No available kernel. Aborting execution."}


@pytest.mark.parametrize(
    "bench, error",
    [
        (KernelBench(["sorting"], "cpu"), RequestError),
        (KernelBench(["swiglu"], "cpu", ["int3"]), RequestError),
        (KernelBench(["swiglu"], "tpu"), ModelLoadError),
    ],
)
def test_refusals(bench, error):
    with pytest.raises(error):
        measure(bench)


def test_the_least_work_of_attention_is_counted_by_hand():
    setting = kernel_cases.Setting(torch.device("cpu"), torch.float32, small=True)
    trial = kernel_cases.attention([], [], ([2, 1], [3, 5]))(setting)
    heads, kv_heads, dim = 4, 2, 128
    assert trial.num_bytes == (2 * 8 * kv_heads * dim + 2 * 3 * heads * dim) * 4  # keys and values once, q in, out back
    assert trial.flops == 4 * (2 + 3 + 5) * heads * dim


def test_parts_that_fail_or_hang_are_told_and_the_rest_runs(monkeypatch, tmp_path):
    scripts = {
        "good": "import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text('{\"tps\": 5}')",
        "bad": "raise SystemExit(3)",
        "hanging": "import threading; threading.Event().wait()",
        "last": "pass",
    }
    parts = [Part(name, ["-c", code], 0.0 if name == "hanging" else 1.0) for name, code in scripts.items()]
    monkeypatch.setattr(gpu, "plan", lambda bench: parts)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.3)
    rows = gpu.measure(GpuBench(tmp_path, "cpu", minutes=1.0))
    assert [row["outcome"].split(" (")[0].split(" after")[0] for row in rows] == [
        "passed",
        "failed",
        "stopped",
        "passed",
    ]
    assert rows[0]["figures"] == {"tps": 5}
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "gpu.json").read_text())["parts"] == rows


@pytest.mark.parametrize("figures", ['{"tps": 5', '"', "\\xff", "5"])
@pytest.mark.parametrize(("status", "outcome"), [(3, "failed (3)"), (0, "failed (its figures cannot be read)")])
def test_figures_cut_off_cost_only_their_part(monkeypatch, tmp_path, figures, status, outcome):
    half = f"import sys, pathlib; pathlib.Path(sys.argv[-1]).write_bytes(b'{figures}'); raise SystemExit({status})"
    monkeypatch.setattr(gpu, "plan", lambda bench: [Part("half", ["-c", half], 1.0), Part("next", ["-c", ""], 1.0)])
    rows = gpu.measure(GpuBench(tmp_path, "cpu"))
    assert [(row["outcome"], row["figures"]) for row in rows] == [(outcome, {}), ("passed", {})]


def test_the_plan_of_a_gpu():
    names = [part.name for part in plan(GpuBench(Path("x")))]
    shapes = ["qwen3-0.6b", "qwen3-8b"]
    assert names == ["tests", "kernels", *(f"{who}-{shape}" for shape in shapes for who in ("engine", "transformers"))]


def test_a_bare_clone_without_granian_can_measure(tmp_path):
    """As on a machine that has torch and a checkout, and nothing of the server."""
    (tmp_path / "granian.py").write_text("raise ImportError('granian is not here')")
    arguments = ["bench", "kernels", "swiglu", "--device", "cpu", "--dtype", "float32", "--small", "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "sirocco", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["correct"]
